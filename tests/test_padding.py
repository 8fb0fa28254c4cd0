"""Padding: refusals, numbers of sides, values, and what a gradient may cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F

X = jnp.arange(14.0).reshape(1, 2, 7)


@pytest.mark.parametrize(
    ("pad", "kwargs", "exc", "match"),
    [
        (1, {}, TypeError, "pad must be a sequence of ints"),
        ((1.0, 2), {}, TypeError, "pad must be an integer"),
        ((1,), {}, RuntimeError, "two numbers for each dimension"),
        ((1,) * 8, {}, RuntimeError, "no more sides than input"),
        ((-8, 0), {}, RuntimeError, "leave no dimension below 0"),
        ((1, 1), {"mode": "mirror"}, NotImplementedError, "mode must be constant, reflect, replicate or circular"),
        ((1, 1), {"mode": "reflect", "value": 1.0}, RuntimeError, "takes no value"),
        ((), {"mode": "reflect"}, NotImplementedError, "pads the last n dimensions"),
        ((1,) * 6, {"mode": "circular"}, NotImplementedError, "pads the last n dimensions"),
        ((7, 0), {"mode": "reflect"}, RuntimeError, "a reflection must be smaller"),
        ((8, 0), {"mode": "circular"}, RuntimeError, "no more than once"),
        ((-4, 4), {"mode": "circular"}, RuntimeError, "no more than once"),
    ],
)
def test_refusals(pad, kwargs, exc, match):
    with pytest.raises(exc, match=f"pad: .*{match}"):
        F.pad(X, pad, **kwargs)


def test_nothing_to_repeat():
    with pytest.raises(RuntimeError, match="pad: an empty dimension has no edge"):
        F.pad(X[..., :0], (1, 1), mode="replicate")


@pytest.mark.parametrize(("n", "shape"), [(1, (3,)), (2, (2, 3)), (3, (2, 2, 3))])
def test_circular_layers_check_the_rank(n, shape):
    with pytest.raises(ValueError, match=f"CircularPad{n}d: input must be {n + 1}D or {n + 2}D"):
        getattr(jnn, f"CircularPad{n}d")(1)(jnp.ones(shape))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pad", [(2, 1), (-2, 1), (1, -3), (-2, 3), (6, 0), (-1, -2), (0, 0)])
def test_one_dimension(mode, pad):
    theirs = torch.nn.functional.pad(torch.tensor(np.asarray(X)), pad, mode=mode)
    np.testing.assert_array_equal(F.pad(X, pad, mode=mode), theirs)


@pytest.mark.parametrize("pad", [(), (1, 2), (0, 0, 1, -1), (1, 0, 0, 1, 2, 3), (1, 0, 0, 1, 2, 3, -1, 4)])
def test_any_number_of_sides(pad, rng):
    x = rng.standard_normal((2, 1, 3, 2))
    np.testing.assert_array_equal(F.pad(x, pad, value=7.5), torch.nn.functional.pad(torch.tensor(x), pad, value=7.5))


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16, np.complex64])
def test_the_fill_takes_the_inputs_dtype(dtype):
    x = np.ones((1, 2, 3), dtype)
    for kwargs in ({}, {"value": 2.5}, {"mode": "circular"}):
        theirs = torch.nn.functional.pad(torch.tensor(x), (1, 1), **kwargs).numpy()
        mine = F.pad(x, (1, 1), **kwargs)
        assert mine.dtype == dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_empty_batch_and_gradient_without_scatter(mode):
    assert F.pad(jnp.ones((0, 2, 5)), (1, 2), mode=mode).shape == (0, 2, 8)
    gradient = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(F.pad(x, (2, 1), mode=mode) ** 2)))(X)
    assert "scatter" not in str(gradient)
    assert "gather" not in str(gradient)


def test_constant_padding_accepts_fewer_sides():
    assert jnn.ZeroPad2d((1, 2))(X).shape == (1, 2, 10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "pad"),
    [
        ((5, 3, 4), (1, 2)),
        ((300, 40, 7), (0, 3)),
        ((3, 37, 1), (1, 1)),
        ((2, 40, 5, 9), (3, 1, 2, 1)),
        ((2, 40, 16, 16), (1, 3, 0, 1)),
        ((2, 3, 5, 140), (1, 3, 2, 1)),
        ((2, 3, 5, 9), (-1, 3, 2, 1)),
        ((2, 3, 5, 9), (1, 3, -2, 1)),
        ((2, 30, 3, 5, 9), (2, 0, 1, 1, 1, 2)),
        ((2, 30, 3, 5, 9), (2, 0, 1, 1, -1, 2)),
    ],
)
def test_constant_padding_of_short_and_long_rows(shape, pad, dtype, rng):
    x = rng.standard_normal(shape).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.pad(leaf, pad, value=-7.5)
    slope = rng.standard_normal(theirs.shape).astype(dtype)
    theirs.backward(torch.tensor(slope))
    mine, back = jax.vjp(lambda x: F.pad(x, pad, value=-7.5), jnp.asarray(x))
    np.testing.assert_array_equal(mine, theirs.detach())
    np.testing.assert_array_equal(back(jnp.asarray(slope))[0], leaf.grad)
