"""Lazy layers: side by side with torch, as modules, and on the pure face."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jnn as nn
from jnn import layers as L
from jnn.core.spec import Layer, layer
from jnn.module.lazy import LazyModuleMixin, is_lazy

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Name, arguments, keywords, and shape of the input.
ROWS = [
    ("LazyLinear", (3,), {}, (2, 4)),
    ("LazyLinear", (3,), {"bias": False}, (5,)),
    ("LazyConv1d", (4, 3), {"padding": "same", "padding_mode": "circular"}, (2, 3, 5)),
    ("LazyConv2d", (4, 3), {"groups": 2, "stride": 2, "bias": False}, (2, 6, 5, 5)),
    ("LazyConv3d", (2, 2), {"dilation": 2}, (3, 4, 4, 4)),
    ("LazyConvTranspose1d", (4, 3), {"groups": 2}, (6, 5)),
    ("LazyConvTranspose2d", (4, 3, 2, 1, 1), {}, (1, 3, 4, 4)),
    ("LazyConvTranspose3d", (2, 2), {"bias": False}, (1, 3, 3, 3, 3)),
    ("LazyBatchNorm1d", (), {}, (4, 3)),
    ("LazyBatchNorm1d", (1e-3, None), {"bias": False}, (4, 3, 2)),
    ("LazyBatchNorm2d", (), {"affine": False}, (2, 3, 4, 4)),
    ("LazyBatchNorm3d", (), {"track_running_stats": False}, (2, 3, 2, 2, 2)),
    ("LazyInstanceNorm1d", (), {}, (2, 3, 4)),
    ("LazyInstanceNorm2d", (), {"track_running_stats": False, "bias": False}, (2, 3, 4, 4)),
    ("LazyInstanceNorm3d", (), {"affine": False}, (2, 3, 2, 2, 2)),
]
rows = pytest.mark.parametrize(("name", "args", "kwargs", "shape"), ROWS, ids=lambda x: str(x).replace(" ", ""))


def draw(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def both(name, args, kwargs):
    return getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)


def arrays(module):
    return {k: v.numpy() for k, v in module.state_dict().items()}


def describe(module):
    """What there is to see of a module, lazy or not."""
    values = {n: type(v).__name__ if "Uninit" in type(v).__name__ else tuple(v.shape) for n, v in module.state_dict(keep_vars=True).items()}
    parameters = [(n, p.requires_grad) for n, p in module.named_parameters()]
    return repr(module), type(module).__name__, values, parameters, [n for n, _ in module.named_buffers()]


@rows
def test_before_and_after_the_first_call(name, args, kwargs, shape):
    (mine, theirs), x = both(name, args, kwargs), draw(shape)
    assert describe(mine) == describe(theirs)
    assert [is_lazy(v) for v in mine.state_dict().values()] == [torch.nn.parameter.is_lazy(v) for v in theirs.state_dict().values()]
    mine(x), theirs(torch.tensor(x))
    assert describe(mine) == describe(theirs)
    assert type(mine) is getattr(nn, name.removeprefix("Lazy"))
    mine.load_state_dict(arrays(theirs))
    np.testing.assert_allclose(mine(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


@rows
def test_a_state_dict_materialises(name, args, kwargs, shape):
    (mine, theirs), x = both(name, args, kwargs), draw(shape)
    again = getattr(torch.nn, name)(*args, **kwargs)
    theirs(torch.tensor(x))
    mine.load_state_dict(arrays(theirs))
    again.load_state_dict(theirs.state_dict())
    assert describe(mine)[1:] == describe(again)[1:]
    # The size is known from here on, where torch's is from the next call.
    params, buffers = nn.split(mine)
    fresh = nn.pure(mine).init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, (params, buffers))
    y, _ = nn.pure(mine).apply(params, buffers, x, train=True)
    np.testing.assert_allclose(y, mine(x), rtol=1e-5, atol=1e-6)
    assert type(mine) is getattr(nn, name.removeprefix("Lazy"))


@rows
def test_the_pure_face_learns_from_an_example_or_a_shape(name, args, kwargs, shape, key):
    lazy, x = getattr(L, name)(*args, **kwargs), jnp.asarray(draw(shape))
    assert repr(lazy) == repr(getattr(torch.nn, name)(*args, **kwargs))
    state = lazy.init(key, x)
    abstract = jax.ShapeDtypeStruct(x.shape, x.dtype)
    plain = lazy.resolved(x)
    for other in (lazy.init(key, abstract), plain.init(key), jax.jit(lazy.init)(key, x)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, other)
    assert jax.tree.map(jnp.shape, jax.eval_shape(lazy.init, key, abstract)) == jax.tree.map(jnp.shape, state)
    y, new = lazy.apply(*state, x, train=True)
    expected, expected_new = plain.apply(*state, x, train=True)
    jax.tree.map(np.testing.assert_array_equal, (y, new), (expected, expected_new))
    assert hash(lazy) == hash(getattr(L, name)(*args, **kwargs))


SIDES = pytest.mark.parametrize("nn", [nn, torch.nn], ids=["jnn", "torch"])


def ones(nn, *shape):
    return torch.ones(shape) if nn is torch.nn else jnp.ones(shape, jnp.float32)


@SIDES
@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda nn, m: m.weight.shape, RuntimeError),
        (lambda nn, m: m.weight + 1, ValueError),
        (lambda nn, m: 2 * m.weight, ValueError),
        (lambda nn, m: m.weight.numel(), ValueError),
        (lambda nn, m: m.weight.sum(), ValueError),
        (lambda nn, m: m.weight.dim(), ValueError),
        (lambda nn, m: m.forward(ones(nn, 1, 4)), ValueError),
        (lambda nn, m: nn.functional.linear(ones(nn, 1, 4), m.weight), ValueError),
        (lambda nn, m: nn.init.ones_(m.weight), ValueError),
        (lambda nn, m: nn.Linear(4, 3).load_state_dict(m.state_dict()), RuntimeError),
        (lambda nn, m: m.load_state_dict({}), RuntimeError),
        (lambda nn, m: nn.LazyConv2d(4, 3)(ones(nn, 3)), RuntimeError),
        (lambda nn, m: nn.LazyConv2d(4, 3, groups=2)(ones(nn, 1, 3, 5, 5)), ValueError),
        (lambda nn, m: nn.LazyConv2d(4, 3, padding="x"), ValueError),
        (lambda nn, m: nn.LazyBatchNorm2d()(ones(nn, 2, 3)), ValueError),
        (lambda nn, m: nn.LazyLinear(), TypeError),
    ],
)
def test_what_is_used_too_early_is_refused(nn, use, error):
    with pytest.raises(error):
        use(nn, nn.LazyLinear(3))


@pytest.mark.parametrize(
    "see",
    [
        lambda nn, m: str(m.weight.dtype).split(".")[-1],
        lambda nn, m: str(m.double().weight.dtype).split(".")[-1],
        lambda nn, m: (m.double()(ones(nn, 1, 4).double() if nn is torch.nn else jnp.ones((1, 4))), str(m.weight.dtype).split(".")[-1])[1],
        lambda nn, m: (m.half(), m.cpu(), m(ones(nn, 1, 4).half() if nn is torch.nn else jnp.ones((1, 4), "float16")), repr(m))[3],
        lambda nn, m: repr(m.weight),
        lambda nn, m: repr(copy.deepcopy(m).weight),
        lambda nn, m: repr(pickle.loads(pickle.dumps(m)).bias),
        lambda nn, m: m.has_uninitialized_params(),
        lambda nn, m: m.weight.requires_grad,
        lambda nn, m: isinstance(m, nn.Linear),
        lambda nn, m: m.cls_to_become is nn.Linear,
        lambda nn, m: isinstance(m.weight, nn.Parameter),
        lambda nn, m: [*m.load_state_dict(m.state_dict()).missing_keys],
        lambda nn, m: (m.reset_parameters(), m.zero_grad(), repr(m.weight))[2],
        lambda nn, m: (lambda w: (m(ones(nn, 1, 4)), m.weight is w, type(w).__name__)[1:])(m.weight),
        lambda nn, m: (m(ones(nn, 0)), repr(m))[1],
        lambda nn, m: (m.train(False), repr(m(ones(nn, 2, 4)).shape).removeprefix("torch.Size(").strip("[]()"))[1],
        lambda nn, m: (m.initialize_parameters(ones(nn, 2, 4)), m.has_uninitialized_params(), type(m).__name__)[1:],
        lambda nn, m: repr(nn.UninitializedBuffer()),
        lambda nn, m: (lambda p: (p.materialize((2, 3)), type(p).__name__, tuple(p.shape))[1:])(nn.UninitializedParameter()),
    ],
)
def test_what_can_be_done_before(see):
    assert see(nn, nn.LazyLinear(3)) == see(torch.nn, torch.nn.LazyLinear(3))


@SIDES
def test_hooks_and_mixins_of_a_user(nn):
    mixin = LazyModuleMixin if nn is not torch.nn else torch.nn.modules.lazy.LazyModuleMixin
    seen = []

    class Scale(mixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.UninitializedParameter()
            self.calls = 0

        def initialize_parameters(self, x):
            if self.has_uninitialized_params():
                self.weight.materialize((1, x.shape[-1]))
            self.calls += 1

        def forward(self, x):
            return x + 0 * self.weight

    class Forgetful(Scale):
        def initialize_parameters(self, x):
            pass

    scale = Scale()
    scale.register_forward_pre_hook(lambda m, args: seen.append(tuple(m.weight.shape)))
    for _ in range(2):
        assert tuple(scale(ones(nn, 2, 3)).shape) == (2, 3)
    assert scale.calls == 1
    assert seen == [(1, 3), (1, 3)]
    assert type(scale) is Scale
    loaded = Scale()
    loaded.load_state_dict(scale.state_dict())
    loaded(ones(nn, 2, 3))
    assert loaded.calls == 1
    with pytest.raises(RuntimeError):
        Forgetful()(ones(nn, 2, 3))
    linear = nn.LazyLinear(2)
    linear.register_forward_pre_hook(lambda m, args: seen.append(type(m).__name__))
    linear(ones(nn, 1, 2))
    assert seen[-1] == "Linear"


def test_a_loaded_mixin_in_a_compiled_call():
    class Scale(LazyModuleMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.UninitializedParameter()

        def initialize_parameters(self, x):
            if self.has_uninitialized_params():
                self.weight.materialize(x.shape)

        def forward(self, x):
            return x * self.weight

    scale = Scale()
    scale.load_state_dict({"weight": np.full(3, 2.0, np.float32)})
    loss, grads = nn.value_and_grad(lambda m, x: jnp.sum(m(x)))(scale, jnp.ones(3))
    assert loss == 6
    np.testing.assert_array_equal(grads["weight"], 1)
    assert scale(jnp.ones(3)).sum() == 6


def network():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.parametrize(
    "use",
    [
        nn.split,
        nn.pure,
        lambda m: nn.value_and_grad(lambda m, x: jnp.sum(m(x)))(m, jnp.ones((1, 3, 5, 5))),
        lambda m: nn.backward(lambda m, x: jnp.sum(m(x)), m, jnp.ones((1, 3, 5, 5))),
        lambda m: nn.func.functional_call(m, {}, jnp.ones((1, 3, 5, 5))),
        lambda m: nn.optim.Optimizer(m, optax.sgd(0.1)),
    ],
)
def test_compiled_and_pure_uses_say_what_to_do(use):
    with pytest.raises(ValueError, match="LazyConv2d: a lazy layer has no parameters yet; call the model once on an example"):
        use(network())


@pytest.mark.parametrize("use", [jnp.sum, jax.jit(lambda w: w), np.asarray, lambda w: w.fill_(1), lambda w: w[0], len, bool])
def test_a_parameter_used_too_early_says_what_to_do(use):
    with pytest.raises(ValueError, match="UninitializedParameter: its values are not known yet; call the model once on an example"):
        use(nn.LazyLinear(3).weight)


def test_training_after_the_first_call():
    x = jnp.asarray(draw((2, 3, 5, 5)))
    model = network()
    model(x)
    assert [type(m).__name__ for m in model] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    step = nn.train_step(lambda m, x: jnp.sum(m(x) ** 2), nn.optim.Optimizer(model, optax.sgd(0.01)))
    assert step(x) > step(x)


def test_an_abstract_first_call_and_one_inside_a_trace():
    first, second = network().eval(), network().eval()
    out = jax.eval_shape(first, jax.ShapeDtypeStruct((2, 3, 5, 5), jnp.float32))
    assert out.shape == (2, 2)
    x = jnp.asarray(draw((2, 3, 5, 5)))
    jax.jit(second)(x)
    for model in (first, second):
        assert model(x).shape == (2, 2)
        nn.split(model)


def test_initial_values_are_the_plain_layers():
    lazy, plain = nn.LazyLinear(200), nn.Linear(300, 200)
    lazy(jnp.ones((1, 300), jnp.float32))
    for p, q in zip(lazy.parameters(), plain.parameters(), strict=True):
        bound = 300**-0.5
        assert abs(float(p.max()) - bound) < 0.05 * bound
        assert abs(float(p.std()) - float(q.std())) < 0.1 * float(q.std())
    nn.manual_seed(3)
    a = nn.LazyLinear(4)
    a(jnp.ones(3, jnp.float32))
    nn.manual_seed(3)
    b = nn.LazyLinear(4)
    b(jnp.ones(3, jnp.float32))
    np.testing.assert_array_equal(a.weight, b.weight)


def test_a_failed_load_leaves_it_lazy():
    model = nn.LazyLinear(3)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"weight": np.ones((3, 2)), "bias": np.ones(3), "other": np.ones(1)})
    assert model.has_uninitialized_params()
    assert model(jnp.ones((1, 5), jnp.float32)).shape == (1, 3)


def test_meta_device():
    model = nn.LazyLinear(3, device="meta")
    model.initialize_parameters(jnp.ones((1, 5)))
    assert model.weight.shape == (3, 5)
    assert isinstance(model.weight._value, jax.ShapeDtypeStruct)
    model.to_empty(device="cpu")
    assert model(jnp.ones((1, 5), jnp.float32)).shape == (1, 3)


# Networks on the pure face


def pure_network():
    return L.Sequential(L.LazyConv2d(4, 3), L.LazyBatchNorm2d(), L.ReLU(), L.Flatten(), L.Sequential(L.LazyLinear(8), L.LazyLinear(2)))


def test_a_network_learns_from_an_example(key):
    lazy, x = pure_network(), jnp.asarray(draw((2, 3, 5, 5)))
    plain = L.Sequential(L.Conv2d(3, 4, 3), L.BatchNorm2d(4), L.ReLU(), L.Flatten(), L.Sequential(L.Linear(36, 8), L.Linear(8, 2)))
    expected = plain.init(key)
    for example in (x, jax.ShapeDtypeStruct(x.shape, x.dtype)):
        state = lazy.init(key, example)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert [*state[0]] == ["0", "1", "4"]
    assert jax.tree.map(jnp.shape, jax.eval_shape(lazy.init, key, x)) == jax.tree.map(jnp.shape, expected)
    y, buffers = lazy.apply(*expected, x, train=True)
    jax.tree.map(np.testing.assert_array_equal, (y, buffers), plain.apply(*expected, x, train=True))
    # A network without lazy layers takes an example too, and needs none.
    jax.tree.map(np.testing.assert_array_equal, plain.init(key, x), expected)


def test_a_network_says_which_layers_lack_an_example(key):
    with pytest.raises(ValueError, match=r"lazy layers learn their sizes .* init\(key, input\), got layers=\['0', '1', '4.0', '4.1'\]"):
        pure_network().init(key)
    unused = L.ModuleDict({"a": L.LazyLinear(2)})
    with pytest.raises(NotImplementedError):
        unused.init(key, jnp.ones(2))
    with pytest.raises(RuntimeError, match="LazyConv2d: input must be 3D or 4D"):
        pure_network().init(key, jnp.ones((2, 3)))


@layer
class Twice(Layer):
    """A composite that calls one lazy layer twice, and another with a keyword."""

    width: int

    def parts(self):
        return {"up": L.LazyLinear(self.width), "shared": L.LazyLinear(self.width), "drop": L.Dropout(0.5)}

    def compute(self, s, x, *, scale=None, flag=True):
        x = s.drop(s.up(input=x))
        return s.shared(s.shared(x)) * (scale if flag and scale is not None else 1)


def test_a_composite_with_shared_lazy_layers(key):
    x = jnp.asarray(draw((2, 5)))
    params, buffers = Twice(4).init(key, x, scale=jnp.ones(()), flag=True)
    assert params["up"]["weight"].shape == (4, 5)
    assert params["shared"]["weight"].shape == (4, 4)
    y, _ = Twice(4).apply(params, buffers, x)
    assert y.shape == (2, 4)


def test_lazy_layers_inside_a_stack(key):
    encoder = L.TransformerEncoder(L.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation=L.Sequential(L.LazyLinear(8))), 2)
    x = jnp.asarray(draw((2, 3, 4)))
    params, buffers = encoder.init(key, x)
    assert params["layers"]["1"]["activation"]["0"]["weight"].shape == (8, 8)
    assert encoder.apply(params, buffers, x)[0].shape == x.shape


def test_a_dtype_and_a_device_are_kept(key):
    params, _ = L.LazyLinear(3, dtype="float64").init(key, jnp.ones((1, 2)))
    assert params["weight"].dtype == np.float64
    params, _ = L.Sequential(L.LazyLinear(3, device="meta"), L.LazyLinear(2)).init(key, jnp.ones((1, 2), jnp.float32))
    assert isinstance(params["0"]["weight"], jax.ShapeDtypeStruct)
    assert params["1"]["weight"].shape == (2, 3)


def test_from_a_spec():
    module = nn.Module.from_spec(pure_network())
    assert [type(m).__name__ for m in module][:2] == ["LazyConv2d", "LazyBatchNorm2d"]
    assert module(jnp.asarray(draw((2, 3, 5, 5)))).shape == (2, 2)
