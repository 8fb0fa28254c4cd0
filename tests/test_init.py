"""Initialisers: their distributions, their refusals, and that both forms are one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
from jnn import init

N = (400, 300)
BIG = math.sqrt(6 / 700)


def box(shape, dtype=jnp.float32):
    return jnn.Parameter(jnp.zeros(shape, dtype))


def call(name, args, shape):
    """The same in-place call on both sides, as numpy arrays."""
    mine, theirs = box(shape), torch.zeros(shape)
    assert getattr(init, name)(mine, *args) is mine
    getattr(torch.nn.init, name)(theirs, *args)
    return np.asarray(mine), theirs.numpy()


RANDOM = [
    ("uniform_", (-2.0, 3.0), N),
    ("normal_", (1.0, 2.0), N),
    ("trunc_normal_", (), N),
    ("trunc_normal_", (0.5, 2.0, -1.0, 0.7), N),
    ("trunc_normal_", (0.0, 1.0, 1.5, 4.0), N),
    ("xavier_uniform_", (2.0,), N),
    ("xavier_normal_", (), N),
    ("xavier_normal_", (), (40, 20, 3, 3)),
    ("kaiming_uniform_", (), N),
    ("kaiming_uniform_", (0.3, "fan_out", "leaky_relu"), (64, 32, 3)),
    ("kaiming_normal_", (0, "fan_out", "relu"), N),
    ("kaiming_normal_", (0, "fan_in", "tanh"), (40, 20, 3, 3)),
]


@pytest.mark.parametrize(("name", "args", "shape"), RANDOM, ids=str)
def test_distributions_are_torchs(name, args, shape):
    mine, theirs = (x.ravel() for x in call(name, args, shape))
    spread = theirs.std()
    assert abs(mine.mean() - theirs.mean()) < 6 * spread / math.sqrt(mine.size)
    assert abs(mine.std() / spread - 1) < 0.05
    # The largest distance between the two distribution functions, which is below this in all but one of a million tries.
    both = np.sort(np.concatenate([mine, theirs]))
    distance = np.abs(np.searchsorted(np.sort(mine), both) - np.searchsorted(np.sort(theirs), both)).max() / mine.size
    assert distance < 3.8 / math.sqrt(mine.size)


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("constant_", (0.3,), (2, 3)),
        ("ones_", (), (2, 3)),
        ("zeros_", (), (4,)),
        ("eye_", (), (3, 5)),
        ("eye_", (), (5, 3)),
        ("dirac_", (), (4, 3, 5)),
        ("dirac_", (), (3, 5, 3, 4)),
        ("dirac_", (2,), (6, 2, 1, 2, 3)),
        ("dirac_", (3,), (6, 5, 3)),
    ],
    ids=str,
)
def test_fixed_values_are_torchs(name, args, shape):
    mine, theirs = call(name, args, shape)
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (4, 2, 3), (2, 0)], ids=str)
def test_orthogonal(shape):
    w = np.asarray(init.orthogonal(jax.random.key(1), shape, np.float64, gain=2.0)).reshape(shape[0], -1)
    if w.size:
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-12)


def test_orthogonal_matrices_are_uniform_over_signs():
    signs = [np.sign(np.diag(init.orthogonal(jax.random.key(i), (2, 2)))).sum() for i in range(40)]
    assert {-2, 0, 2} == set(signs)


def test_sparse():
    w = np.asarray(init.sparse_(box((50, 40)), 0.33, 2.0))
    assert ((w == 0).sum(0) == math.ceil(0.33 * 50)).all()
    assert len({tuple(column) for column in (w == 0).T}) > 1
    assert abs(w[w != 0].std() - 2) < 0.15


def test_truncation_far_in_a_tail():
    with pytest.warns(UserWarning, match="more than 2 std"):
        x = np.asarray(init.trunc_normal(jax.random.key(0), (50_000,), None, 0, 1, 8, 9))
    assert x.min() >= 8
    assert x.max() <= 9
    assert abs(x.mean() - 8.1212) < 0.003  # the mean of N(0, 1) given [8, 9]
    assert len(np.unique(x)) > 10_000


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_drawn_finely(dtype):
    x = init.normal(jax.random.key(0), (200_000,), dtype)
    assert x.dtype == dtype
    assert np.abs(np.asarray(x, np.float32)).max() > 4
    assert init.orthogonal_(box((3, 3), dtype)).dtype == dtype
    assert float(init.trunc_normal(jax.random.key(0), (10_000,), dtype).max()) <= 2


def test_complex_values():
    x = np.asarray(init.normal(jax.random.key(0), (100_000,), np.complex64, 0.0, 3.0))
    assert abs(np.abs(x).std() ** 2 + np.abs(x).mean() ** 2 - 9) < 0.3
    with pytest.raises(RuntimeError, match="uniform: dtype must be real"):
        init.uniform(jax.random.key(0), (2,), np.complex64)


IN_PLACE = [n for n in init.__all__ if n.endswith("_")]


@pytest.mark.parametrize("name", IN_PLACE)
def test_one_implementation_in_two_forms(name):
    shape, key = ((4, 3, 3) if name == "dirac_" else (4, 3)), jax.random.key(5)
    args = {"constant_": (2.0,), "sparse_": (0.5,)}.get(name, ())
    drawn = name not in ("constant_", "ones_", "zeros_", "eye_", "dirac_")
    mine = getattr(init, name)(box(shape), *args, **({"generator": key} if drawn else {}))
    pure = jax.jit(lambda key: getattr(init, name[:-1])(key, shape, jnp.float32, *args))
    np.testing.assert_allclose(np.asarray(mine), pure(key if drawn else None), rtol=1e-5, atol=1e-6)


def test_draws_come_from_the_seed_unless_a_key_is_given():
    a, b = (np.asarray(init.normal_(box((3,)))) for _ in range(2))
    jnn.manual_seed(0)
    np.testing.assert_array_equal(a, np.asarray(init.normal_(box((3,)))))
    assert (a != b).all()
    init.ones_(box((3,)))  # which draws nothing
    np.testing.assert_array_equal(b, np.asarray(init.normal_(box((3,)))))


def test_deprecated_aliases():
    for source, w in ((init, box((3, 4))), (torch.nn.init, torch.zeros(3, 4))):
        for name in ("uniform", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal", "eye"):
            with pytest.warns(FutureWarning, match="deprecated"):
                assert getattr(source, name)(w) is w
        with pytest.warns(FutureWarning, match="deprecated"):
            source.constant(w, 2.0)
        assert float(w.sum()) == 24


def test_gradients_and_the_training_flag_are_left_alone():
    w = box((2, 2)).requires_grad_(False)
    w.grad = jnp.ones((2, 2))
    init.uniform_(w)
    assert not w.requires_grad
    assert w.grad.sum() == 4


def test_abstract_parameters_stay_abstract():
    w = jnn.Linear(3, 4, device="meta").weight
    assert init.kaiming_uniform_(w) is w
    assert isinstance(w.detach(), jax.ShapeDtypeStruct)


BAD = [
    ("eye_", (2, 2, 2), ()),
    ("sparse_", (2,), (0.1,)),
    ("dirac_", (2, 2), ()),
    ("dirac_", (5, 2, 3), (2,)),
    ("orthogonal_", (3,), ()),
    ("xavier_uniform_", (3,), ()),
    ("xavier_normal_", (), ()),
    ("kaiming_uniform_", (3,), ()),
    ("kaiming_normal_", (3, 3), (0, "fan_sideways")),
    ("kaiming_normal_", (3, 3), (0, "fan_in", "gelu")),
    ("kaiming_normal_", (3, 3), ("x",)),
    ("uniform_", (3,), (2.0, 1.0)),
    ("normal_", (3,), (0.0, -1.0)),
]


@pytest.mark.parametrize(("name", "shape", "args"), BAD, ids=str)
def test_refusals_are_torchs(name, shape, args):
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(torch.nn.init, name)(torch.zeros(shape), *args)
    with pytest.raises(theirs.type, match=r"^\w+: "):
        getattr(init, name)(box(shape), *args)


@pytest.mark.parametrize("name", ["uniform_", "ones_", "orthogonal_"])
def test_arrays_are_refused(name):
    with pytest.raises(TypeError, match=rf"{name}: only a Parameter or a Buffer .* jnn.init.{name[:-1]}\("):
        getattr(init, name)(jnp.zeros((2, 2)))


def test_no_elements():
    for source, w in ((init, box((0, 3))), (torch.nn.init, torch.zeros(0, 3))):
        with pytest.warns(UserWarning, match=r"no elements|zero-element"):
            source.kaiming_normal_(w)


GAINS = ["linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "selu", "leaky_relu"]


@pytest.mark.parametrize("args", [*((n,) for n in GAINS), ("leaky_relu", 0.2), ("leaky_relu", 3), ("tanh", 0.2)], ids=str)
def test_gains(args):
    assert init.calculate_gain(*args) == pytest.approx(torch.nn.init.calculate_gain(*args))


@pytest.mark.parametrize("args", [("gelu",), ("leaky_relu", True), ("leaky_relu", "a")], ids=str)
def test_gains_that_are_refused(args):
    with pytest.raises(ValueError):
        torch.nn.init.calculate_gain(*args)
    with pytest.raises(ValueError, match="calculate_gain: "):
        init.calculate_gain(*args)
