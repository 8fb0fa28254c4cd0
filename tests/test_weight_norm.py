"""The older weight and spectral normalisations: the same calls on torch and on jnn, the same observations."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jnn

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
SOURCES = [(jnn, jnp.asarray), (torch.nn, torch.tensor)]
SIDES = pytest.mark.parametrize(("nn", "tensor"), SOURCES, ids=["jnn", "torch"])
NAMES = ["weight_norm", "spectral_norm"]

# torch says that its weight_norm is deprecated, and so does jnn; one test sees to it.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def numbers(x):
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def put(nn, name, *args, make=lambda nn: nn.Linear(4, 3), **kwargs):
    return getattr(nn.utils, name)(make(nn), *args, **kwargs)


def pair(name, *args, **kwargs):
    mine, theirs = (put(nn, name, *args, **kwargs) for nn, _ in SOURCES)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return mine, theirs


def assert_same(mine, theirs):
    """All that both sides must agree on about a module."""
    assert repr(mine) == repr(theirs)
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in mine.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    assert len(mine._forward_pre_hooks) == len(theirs._forward_pre_hooks)
    for (k, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6, err_msg=k)
    np.testing.assert_allclose(numbers(mine.weight), numbers(theirs.weight), rtol=1e-5, atol=1e-6)


CASES = [
    ("weight_norm", {}),
    ("weight_norm", {"dim": 1}),
    ("weight_norm", {"dim": None}),
    ("spectral_norm", {}),
    ("spectral_norm", {"dim": 1, "n_power_iterations": 3}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_calls_gradients_and_removal(name, options):
    mine, theirs = pair(name, **options)
    for _ in range(3):
        jnn.backward(lambda m, x: (m(x) ** 2).sum(), mine, X)
        (theirs(torch.tensor(X)) ** 2).sum().backward()
        assert_same(mine, theirs)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    mine.eval()
    theirs.eval()
    np.testing.assert_allclose(mine(X), theirs(torch.tensor(X)).detach(), rtol=1e-5, atol=1e-6)
    assert_same(mine, theirs)
    for nn, m in ((jnn, mine), (torch.nn, theirs)):
        assert getattr(nn.utils, f"remove_{name}")(m) is m
    assert_same(mine, theirs)
    assert isinstance(mine.weight, jnn.Parameter)
    np.testing.assert_allclose(mine(X), theirs(torch.tensor(X)).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", ["Conv2d", "ConvTranspose2d", "Bilinear"])
def test_other_layers(name, layer):
    mine, theirs = pair(name, make=lambda nn: getattr(nn, layer)(2, 3, 2))
    shapes = [(1, 2), (1, 3)] if layer == "Bilinear" else [(1, 2, 4, 4)]
    args = [np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes]
    np.testing.assert_allclose(mine(*args), theirs(*map(torch.tensor, args)).detach(), rtol=1e-4, atol=1e-5)
    assert_same(mine, theirs)


@SIDES
@pytest.mark.parametrize("name", NAMES)
def test_refusals(nn, tensor, name):
    with pytest.raises(RuntimeError, match=f"{name}.*weight"):
        getattr(nn.utils, name)(put(nn, name))
    with pytest.raises(ValueError, match="weight"):
        getattr(nn.utils, f"remove_{name}")(nn.Linear(4, 3))
    with pytest.raises((AttributeError, KeyError), match="absent"):
        put(nn, name, "absent")


@SIDES
def test_spectral_norm_refusals(nn, tensor):
    with pytest.raises(ValueError, match="n_power_iterations"):
        put(nn, "spectral_norm", n_power_iterations=0)
    with pytest.raises(ValueError, match="None"):
        put(nn, "spectral_norm", "bias", make=lambda nn: nn.Linear(4, 3, bias=False))


@SIDES
def test_weight_norm_is_deprecated(nn, tensor):
    with pytest.warns(FutureWarning, match=r"parametrizations.weight_norm"):
        put(nn, "weight_norm")


@SIDES
@pytest.mark.parametrize("name", NAMES)
def test_assignments_last_until_the_next_call(nn, tensor, name):
    m = put(nn, name).eval()
    m(tensor(X))
    before = numbers(m.weight)
    m.weight = tensor(np.zeros((3, 4), np.float32))
    assert (numbers(m.weight) == 0).all()
    m(tensor(X))
    np.testing.assert_allclose(numbers(m.weight), before, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_reading_is_never_out_of_date(name):
    m = put(jnn, name).eval()
    before = np.asarray(m.weight)
    (m.weight_g if name == "weight_norm" else m.weight_u).mul_(2.0)
    np.testing.assert_allclose(m.weight, before * (2 if name == "weight_norm" else 0.5), rtol=1e-5)
    assert "weight" in dir(m)
    assert "weight" not in vars(m)
    assert type(m) is jnn.Linear


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    m = put(jnn, name).eval()
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), copy.copy(m)):
        np.testing.assert_array_equal(other(X), m(X))
        getattr(jnn.utils, f"remove_{name}")(other)
        assert "weight" in dict(other.named_parameters())
    assert "weight" not in dict(m.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps_train_and_keep_the_vectors(name):
    traces = []

    def loss(m, x):
        traces.append(0)
        return ((m(x) - 0.1) ** 2).mean()

    m = put(jnn, name)
    state = m.state_dict()
    step = jnn.train_step(loss, jnn.optim.Optimizer(m, optax.sgd(0.1)))
    losses = [float(step(X)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert len(traces) == 1
    assert all((np.asarray(v) != np.asarray(state[k])).any() for k, v in m.state_dict().items())
    if name == "spectral_norm":
        assert abs(np.linalg.norm(m.weight, 2) - 1) < 0.05
    pure, (params, buffers) = jnn.pure(m), jnn.split(m)
    out, new = pure.apply(params, buffers, X, train=True)
    np.testing.assert_allclose(out, m(X), rtol=1e-5)
    if name == "spectral_norm":
        np.testing.assert_allclose(new["weight_u"], m.weight_u.detach(), rtol=1e-5)
    fresh, _ = pure.init(jax.random.key(3))
    assert [*fresh] == [*params]


def test_a_weight_shared_by_two_calls_moves_its_vectors_twice():
    mine, theirs = pair("spectral_norm", make=lambda nn: nn.Linear(4, 4))
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(mine(mine(x)), theirs(theirs(torch.tensor(x))).detach(), rtol=1e-5)
    assert_same(mine, theirs)


@SIDES
def test_versions_in_metadata(nn, tensor):
    m = put(nn, "spectral_norm")
    assert m.state_dict()._metadata[""]["spectral_norm"] == {"weight.version": 1}
    nn.utils.remove_spectral_norm(m)
    assert "spectral_norm" not in m.state_dict()._metadata[""]


@SIDES
def test_state_of_torch_before_its_version_1(nn, tensor):
    m = put(nn, "spectral_norm", make=lambda nn: nn.Linear(3, 4))
    for _ in range(5):
        m(tensor(X[:, :3]))
    m.eval()
    expected = numbers(m(tensor(X[:, :3])))
    state = OrderedDict(m.state_dict())
    state["weight"] = tensor(numbers(m.weight))
    del state["weight_v"]
    new = put(nn, "spectral_norm", make=lambda nn: nn.Linear(3, 4)).eval()
    new.load_state_dict(state)
    np.testing.assert_allclose(numbers(new(tensor(X[:, :3]))), expected, rtol=1e-4, atol=1e-5)
    del state["weight_u"]
    with pytest.raises(RuntimeError, match="weight_u"):
        new.load_state_dict(state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_kept(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        m = getattr(jnn.utils, name)(jnn.Linear(4, 3, dtype=dtype))
    assert m.weight.dtype == dtype
    assert m(jnp.asarray(X, dtype)).dtype == dtype
    assert {v.dtype for v in m.state_dict().values()} == {np.dtype(dtype)}
