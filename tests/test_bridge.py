"""From Module to the pure pair and back: names, ties, frozen parameters, randomness, programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn as nn
import jnn.functional as F
from jnn import layers as L


def ones(shape):
    return jnp.ones(shape, jnp.float32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, 3)
        self.scale = nn.Parameter(ones((1, 3)))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.drop(x.reshape(x.shape[0], -1))) * self.scale


@pytest.fixture
def net():
    return Net()


X = np.random.default_rng(0).standard_normal((5, 1, 6, 6)).astype(np.float32)


def test_the_pure_program_is_the_hand_written_one(net, key):
    """A network of layers, of modules, and one written with functions alone: one jaxpr, character for character."""
    spec = L.Sequential(L.Conv2d(1, 4, 3), L.BatchNorm2d(4), L.ReLU(), L.MaxPool2d(2), L.Flatten(), L.Linear(16, 3), L.LogSoftmax(1))
    params, buffers = spec.init(key)

    def by_hand(params, buffers, x):
        x = F.conv2d(x, params["0"]["weight"], params["0"]["bias"])
        stats = buffers["1"]
        x = F.batch_norm(x, stats["running_mean"], stats["running_var"], params["1"]["weight"], params["1"]["bias"])
        x = F.max_pool2d(F.relu(x), 2)
        x = x.reshape(x.shape[0], -1)
        return F.log_softmax(F.linear(x, params["5"]["weight"], params["5"]["bias"]), 1), buffers

    programs = [str(jax.make_jaxpr(f)(params, buffers, X)) for f in (spec.apply, nn.pure(nn.Module.from_spec(spec)).apply, by_hand)]
    assert programs[0] == programs[1] == programs[2]


def test_split_and_update(net):
    params, buffers = nn.split(net)
    assert nn.core.tree.flatten(params).keys() == dict(net.named_parameters()).keys()
    assert nn.core.tree.flatten(buffers).keys() == dict(net.named_buffers()).keys()
    doubled = jax.tree.map(lambda p: p * 2, params)
    nn.update(net, doubled, buffers)
    np.testing.assert_array_equal(net.scale, 2 * np.ones((1, 3)))
    nn.update(net, params)
    np.testing.assert_array_equal(net.scale, np.ones((1, 3)))
    with pytest.raises(KeyError, match=r"Net: params and buffers must have the names that init gives, got missing=\['scale'\]"):
        nn.update(net, {k: v for k, v in params.items() if k != "scale"})
    with pytest.raises(RuntimeError, match="Net: scale must keep its shape"):
        nn.update(net, params | {"scale": ones(4)})


def test_frozen_parameters_travel_in_buffers(net):
    net.conv.requires_grad_(False)
    params, buffers = nn.split(net)
    assert "conv" not in params
    assert buffers["conv"].keys() == {"weight", "bias"}
    out, new = nn.pure(net).apply(params, buffers, X)
    np.testing.assert_allclose(out, net.eval()(X), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(new) == jax.tree.structure(buffers)


def test_tied_parameters_have_one_leaf_and_stay_tied():
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[1].weight = m[0].weight
    params, _ = nn.split(m)
    assert params["1"].keys() == {"bias"}
    grads = jax.grad(lambda p: jnp.sum(nn.pure(m).apply(p, {}, ones(3))[0]))(params)
    assert grads["0"]["weight"].shape == (3, 3)
    nn.update(m, jax.tree.map(lambda p: p * 0, params))
    assert m[0].weight is m[1].weight
    assert not np.asarray(m(ones(3))).any()


def test_pure_init_is_fresh_and_keeps_what_no_layer_made(net, key):
    net.scale.data.fill_(7.0)
    pure = nn.pure(net)
    params, buffers = jax.jit(pure.init)(key)
    np.testing.assert_array_equal(params["scale"], np.full((1, 3), 7.0))
    assert not np.array_equal(params["fc"]["weight"], net.fc.weight)
    for a, b in zip(jax.tree.leaves(pure.init(key)), jax.tree.leaves((params, buffers)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert jax.eval_shape(pure.init, key)[0]["conv"]["weight"].shape == (4, 1, 3, 3)


def test_reset_parameters_of_a_user_is_how_its_module_starts(key):
    class Ones(nn.Linear):
        def reset_parameters(self):
            nn.Parameter.fill_(self.weight, 1.0)
            self.bias.uniform_(2.0, 3.0)

    a, b = (nn.pure(Ones(2, 2)).init(k)[0] for k in jax.random.split(key))
    np.testing.assert_array_equal(a["weight"], np.ones((2, 2)))
    assert (np.asarray(a["bias"]) >= 2).all()
    assert not np.array_equal(a["bias"], b["bias"])
    m = nn.Linear(2, 2)
    before = m.weight.tolist()
    m.reset_parameters()
    assert m.weight.tolist() != before


def test_later_edits_do_not_reach_a_pure_pair(net):
    pure = nn.pure(net)
    params, buffers = nn.split(net)
    expected = pure.apply(params, buffers, X)[0]
    net.fc = nn.Linear(16, 5)
    net.conv.register_forward_hook(lambda m, a, out: out * 0)
    np.testing.assert_array_equal(pure.apply(params, buffers, X)[0], expected)


def test_dropout_needs_a_key_and_follows_its_path(net, key):
    params, buffers = nn.split(net)
    pure = nn.pure(net)
    with pytest.raises(RuntimeError, match="dropout: random numbers at 'drop' need a key; pass key= to apply"):
        pure.apply(params, buffers, X, train=True)
    one, new = pure.apply(params, buffers, X, train=True, key=key)
    two, _ = jax.jit(pure.apply, static_argnames="train")(params, buffers, X, train=True, key=key)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert int(new["norm"]["num_batches_tracked"]) == 1
    assert not np.array_equal(one, pure.apply(params, buffers, X, train=True, key=jax.random.key(1))[0])


def test_inserting_a_layer_does_not_shift_the_others(key):
    plain = L.Sequential(L.Dropout(0.5), L.Dropout(0.5))
    x = ones(64)

    class Two(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first = first
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            self.first(x)
            return self.drop(x)

    runs = [nn.pure(Two(first)).apply({}, {}, x, train=True, key=key)[0] for first in (nn.Identity(), nn.Dropout(0.3), nn.Dropout(0.5))]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    out, _ = plain.apply({}, {}, x, train=True, key=key)
    assert set(np.unique(out)) == {0.0, 4.0}


def test_functions_draw_from_the_running_call(key):
    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5) + 10 * F.dropout(x, 0.5)

    out = nn.pure(Net()).apply({}, {}, ones(64), train=True, key=key)[0]
    assert set(np.unique(out)) == {0.0, 2.0, 20.0, 22.0}
    with pytest.raises(RuntimeError, match="dropout: random numbers inside a jax trace need a key"):
        jax.jit(lambda x: F.dropout(x, 0.5))(ones(3))


def test_trees_of_the_wrong_names_are_refused(key):
    layer = L.Linear(3, 4)
    params, buffers = layer.init(key)
    with pytest.raises(KeyError, match=r"Linear: .* got missing=\['bias'\], unexpected=\['extra'\]"):
        layer.apply({"weight": params["weight"], "extra": 1}, buffers, ones(3))


def test_functional_call_is_torchs(net):
    net.eval()
    full = {n: p.detach() for n, p in net.named_parameters()}
    np.testing.assert_array_equal(nn.func.functional_call(net, {"scale": jnp.zeros((1, 3), dtype=jnp.float32)}, X), np.zeros((5, 3)))
    np.testing.assert_allclose(nn.func.functional_call(net, full, (X,)), net(X), rtol=1e-6)
    with pytest.raises(ValueError, match="functional_call: a name must be given once"):
        nn.func.functional_call(net, (full, {"scale": ones((1, 3))}), X)
    with pytest.raises(RuntimeError, match="missing="):
        nn.func.functional_call(net, full, X, strict=True)


def test_tied_weights_in_functional_call():
    m = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    m[1].weight = m[0].weight
    zero = jnp.zeros((2, 2), dtype=jnp.float32)
    assert not np.asarray(nn.func.functional_call(m, {"1.weight": zero}, ones(2))).any()
    assert np.asarray(nn.func.functional_call(m, {"1.weight": zero}, ones(2), tie_weights=False)).any()


def test_ensembles_by_vmap():
    models = [nn.Linear(3, 2) for _ in range(4)]
    params, buffers = nn.func.stack_module_state(models)
    x = ones((5, 3))
    outs = jax.vmap(lambda p, b: nn.func.functional_call(models[0], (p, b), (x,)))(params, buffers)
    np.testing.assert_allclose(outs, np.stack([m(x) for m in models]), rtol=1e-6)
    with pytest.raises(RuntimeError, match="one class"):
        nn.func.stack_module_state([nn.Linear(2, 2), nn.Identity()])


def test_a_pure_layer_cannot_be_changed():
    layer = L.Linear(3, 4)
    with pytest.raises(AttributeError, match="Linear: a pure layer cannot be changed; construct another, got name='in_features'"):
        layer.in_features = 5
    with pytest.raises(AttributeError, match="cannot be changed"):
        del layer.in_features
    assert layer == L.Linear(3, 4)
    assert layer != L.Linear(3, 4, bias=False)
    assert layer != nn.Linear(3, 4)
    assert len({layer, L.Linear(3, 4), L.Identity()}) == 2
