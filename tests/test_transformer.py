"""Transformers: stacks that are scanned, hooks, activations, masks, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F
from jnn import layers as L

SIZES = (4, 2, 5)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def pure_stack(depth, **how):
    return L.TransformerEncoder(L.TransformerEncoderLayer(*SIZES, 0.0), depth, L.LayerNorm(4), **how)


def module_stack(depth, **how):
    return jnn.pure(jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES, 0.0), depth, jnn.LayerNorm(4), **how))


def gradient(apply, params, x, **kw):
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.sin(apply(p, {}, x, **kw)[0]).sum(), argnums=(0, 1)))(params, x)


def parameters(depth):
    params, _ = pure_stack(depth).init(jax.random.key(0))
    return jax.tree.map(lambda a: a.astype(np.float64) + 0.1, params)


@pytest.mark.parametrize("make", [pure_stack, module_stack])
def test_a_scanned_stack_equals_the_unrolled_one(make, rng):
    params, x = parameters(3), rng.standard_normal((3, 2, 4))
    mask = np.triu(np.full((3, 3), -np.inf), 1)
    expected = gradient(make(3, scan=False).apply, params, x, mask=mask)
    for how in ({"scan": True}, {"scan": True, "remat": True}, {"scan": False, "remat": True}):
        close(gradient(make(3, **how).apply, params, x, mask=mask), expected)


def test_deep_stacks_are_scanned_where_nothing_forbids_it(rng):
    x = rng.standard_normal((3, 2, 4))

    def program(net, **kw):
        params, buffers = jnn.split(net)
        text = str(jax.make_jaxpr(lambda p, x: jnn.pure(net).apply(p, buffers, x, **kw))(params, x))
        return text.count("scan["), text.count("dot_general")

    def fresh(**kw):
        return jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES, **kw), 8).double()

    assert program(fresh())[0] == 1
    assert program(fresh(), train=True, key=jax.random.key(0))[0] == 1
    assert program(jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES), 8, scan=False).double())[0] == 0
    hooked = fresh()
    calls = []
    hooked.layers[3].linear1.register_forward_hook(lambda module, args, output: calls.append(1))
    assert program(hooked)[0] == 0
    assert calls
    replaced = fresh()
    replaced.layers[2].linear1 = jnn.Linear(4, 5, bias=False).double()
    assert program(replaced)[0] == 0
    other = fresh()
    other.layers[2].activation = F.gelu
    assert program(other)[0] == 0
    frozen = fresh()
    frozen.layers[1].eval()
    frozen.layers[1].training = True
    assert program(frozen, train=None, key=jax.random.key(0))[0] == 0
    hooked.scan = True
    with pytest.raises(RuntimeError, match="cannot be scanned"):
        program(hooked)


def test_a_live_module_is_scanned_in_a_trace(rng):
    net = jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES), 8).double().eval()
    x = rng.standard_normal((3, 2, 4))
    close(jax.jit(net)(x), net(x))


def test_dropout_differs_by_layer_when_scanned():
    """Layers that compute the same thing but for what is dropped."""
    net = L.TransformerEncoder(L.TransformerEncoderLayer(4, 1, 512, 0.5), 2, scan=True)
    params, _ = net.init(jax.random.key(0))
    one = jax.tree.map(jnp.zeros_like, params["layers"]["0"])
    one["norm1"]["weight"] = one["norm2"]["weight"] = jnp.ones(4, np.float32)
    one["linear2"]["bias"] = jnp.ones(4, np.float32)
    x = jnp.arange(4, dtype=np.float32).reshape(1, 1, 4)
    outs = {
        tuple(np.round(np.asarray(net.apply({"layers": {"0": one, "1": one}}, {}, x, train=True, key=jax.random.key(i))[0]).ravel(), 3))
        for i in range(40)
    }
    single = L.TransformerEncoder(L.TransformerEncoderLayer(4, 1, 512, 0.5), 1, scan=True)
    firsts = {
        tuple(np.round(np.asarray(single.apply({"layers": {"0": one}}, {}, x, train=True, key=jax.random.key(i))[0]).ravel(), 3))
        for i in range(40)
    }
    assert len(outs) > len(firsts)


@pytest.mark.parametrize("activation", ["relu", "gelu", F.silu])
def test_activations_by_name_or_callable(activation, rng):
    mine = jnn.TransformerEncoderLayer(*SIZES, 0.0, activation).double()
    theirs = torch.nn.TransformerEncoderLayer(*SIZES, 0.0, activation if isinstance(activation, str) else torch.nn.functional.silu).double()
    mine.load_state_dict({n: a.numpy() for n, a in theirs.state_dict().items()})
    x = rng.standard_normal((3, 2, 4))
    np.testing.assert_allclose(mine(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-9, atol=1e-12)
    mine.activation = jnn.Tanh()
    assert "activation" in dict(mine.named_children())
    assert (mine(x) != jnn.TransformerEncoderLayer.forward(mine, x) + 1).all()


def test_a_stack_copies_the_given_module():
    layer = jnn.TransformerEncoderLayer(*SIZES)
    net = jnn.TransformerEncoder(layer, 2)
    np.testing.assert_array_equal(net.layers[0].linear1.weight, layer.linear1.weight)
    assert net.layers[0] is not layer
    assert len([*net.parameters()]) == 2 * len([*layer.parameters()])


def test_custom_parts_and_their_initial_values():
    encoder = jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES), 1)
    net = jnn.Transformer(4, 2, 1, 1, 5, custom_encoder=encoder)
    assert net.encoder is encoder
    params, _ = L.Transformer(64, 2, 1, 1, 256).init(jax.random.key(0))
    for part in (params["encoder"]["layers"]["0"], dict(jnn.split(jnn.Transformer(64, 2, 1, 1, 256))[0])["encoder"]["layers"]["0"]):
        weight = np.asarray(part["linear1"]["weight"])
        np.testing.assert_allclose(weight.std(), np.sqrt(2 / (64 + 256)), rtol=0.05)


def test_masks():
    mask = jnn.Transformer.generate_square_subsequent_mask(3)
    np.testing.assert_array_equal(mask, torch.nn.Transformer.generate_square_subsequent_mask(3).numpy())
    assert mask.dtype == np.float32
    net = jnn.TransformerEncoder(jnn.TransformerEncoderLayer(*SIZES, 0.0), 1)
    x = jax.random.normal(jax.random.key(0), (3, 2, 4), np.float32)
    np.testing.assert_allclose(net(x, mask), net(x, mask, is_causal=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(net)(x, mask), net(x, mask == -jnp.inf), rtol=1e-5, atol=1e-6)


X = np.zeros((3, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("exc", "match", "call"),
    [
        (RuntimeError, "activation must be 'relu', 'gelu'", lambda: jnn.TransformerEncoderLayer(4, 2, activation="selu")),
        (TypeError, "encoder_layer must be a layer", lambda: jnn.TransformerEncoder(3, 2)),
        (RuntimeError, "must have one batch size", lambda: jnn.Transformer(4, 2, 1, 1, 5)(X, X[:, :1])),
        (RuntimeError, "must have d_model features", lambda: jnn.Transformer(2, 2, 1, 1, 5)(X, X)),
    ],
)
def test_refusals(exc, match, call):
    with pytest.raises(exc, match=match):
        call()
