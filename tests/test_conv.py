"""Convolutions: refusals, dtypes, initialisation, edges, and that no lowering choice shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F
from jnn.kernels import convolution
from jnn.kernels.platform import lowering


def ones(*shape, dtype=np.float64):
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("args", "kwargs", "exc", "match"),
    [
        ((4, 6, 3), {"groups": 4}, ValueError, "groups must divide out_channels, got groups=4, out_channels=6"),
        ((4, 6, 3), {"groups": 0}, ValueError, "groups must be at least 1"),
        ((4, 6, 0), {}, ValueError, "kernel_size must be at least 1"),
        ((4, 6, (3, 3, 3)), {}, RuntimeError, "kernel_size must be an int or 2 ints"),
        ((4, 6, 3.5), {}, TypeError, "kernel_size must be an integer"),
        ((4, 6, 3), {"padding": "full"}, ValueError, "padding must be one of 'same', 'valid'"),
        ((4, 6, 3), {"padding": "same", "stride": 2}, ValueError, "padding 'same' needs stride 1"),
        ((4, 6, 3), {"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
    ],
)
def test_bad_configuration(args, kwargs, exc, match):
    with pytest.raises(exc, match=f"Conv2d: {match}"):
        jnn.Conv2d(*args, **kwargs)


def test_transposed_takes_zeros_only():
    with pytest.raises(ValueError, match="ConvTranspose1d: padding_mode must be one of 'zeros'"):
        jnn.ConvTranspose1d(1, 1, 1, padding_mode="reflect")


@pytest.mark.parametrize(
    ("arrays", "kwargs", "exc", "match"),
    [
        ((ones(3, 3), ones(1, 3, 1, 1)), {}, RuntimeError, "input must be 3D or 4D"),
        ((ones(3, 3, 3), ones(1, 3, 1)), {}, RuntimeError, "weight must be 4D"),
        ((ones(3, 3, 3), ones(1, 3, 1, 1, dtype=np.float32)), {}, RuntimeError, "must have one dtype"),
        ((ones(3, 3, 3, dtype=bool), ones(1, 3, 1, 1, dtype=bool)), {}, NotImplementedError, "input must be a number"),
        ((ones(3, 3, 3), ones(1, 2, 1, 1)), {}, RuntimeError, "input must have 2 channels"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1), ones(3)), {}, RuntimeError, r"bias must have shape \(2,\)"),
        ((ones(3, 3, 3), ones(2, 3, 4, 1)), {}, RuntimeError, "kernel must fit"),
        ((ones(3, 3, 0), ones(2, 3, 1, 1)), {"padding": 1}, RuntimeError, "spatial dimensions must not be empty"),
        ((ones(3, 3, 3), ones(2, 1, 1, 1)), {"groups": 3}, RuntimeError, "groups must divide"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"groups": 0}, RuntimeError, "groups must be at least 1"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"stride": 0}, RuntimeError, "stride must be at least 1"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"dilation": (1, 0)}, RuntimeError, "dilation must be at least 1"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"padding": -1}, RuntimeError, "padding must not be negative"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"padding": "SAME"}, RuntimeError, "padding must be 'same', 'valid' or ints"),
        ((ones(3, 3, 3), ones(2, 3, 1, 1)), {"padding": "same", "stride": 2}, RuntimeError, "needs stride 1"),
    ],
)
def test_bad_call(arrays, kwargs, exc, match):
    with pytest.raises(exc, match=f"conv2d: .*{match}"):
        F.conv2d(*arrays, **kwargs)
    with pytest.raises(exc, match=match):
        jax.jit(lambda *a: F.conv2d(*a, **kwargs))(*arrays)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"stride": 2, "output_padding": 2}, "output_padding must be smaller than stride or dilation"),
        ({"padding": 2}, "padding must leave something of the output"),
        ({"groups": 2}, "groups must divide"),
        ({"output_padding": -1}, "padding must not be negative"),
    ],
)
def test_bad_transposed_call(kwargs, match):
    with pytest.raises(RuntimeError, match=f"conv_transpose1d: {match}"):
        F.conv_transpose1d(ones(3, 3), ones(3, 2, 1), **kwargs)


@pytest.mark.parametrize(("size", "match"), [((9,), "must be between"), ((1, 2, 3, 8), "must have 1 or 2 numbers")])
def test_output_size_out_of_reach(size, match):
    with pytest.raises(ValueError, match=f"ConvTranspose1d: output_size {match}"):
        jnn.ConvTranspose1d(2, 1, 3, stride=2)(ones(2, 3, dtype=np.float32), output_size=size)


@pytest.mark.parametrize("size", [(2, 2, 8), (8,)])
def test_output_size_with_and_without_leading_dimensions(size):
    assert jnn.ConvTranspose1d(2, 1, 3, stride=2)(ones(2, 2, 3, dtype=np.float32), output_size=size).shape == (2, 1, 8)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.int64])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dtypes_beyond_floats(dtype, groups, rng):
    def draw(*shape):
        x = rng.integers(-4, 5, shape)
        return (x + 1j * rng.integers(-4, 5, shape) if np.issubdtype(dtype, np.complexfloating) else x).astype(dtype)

    x, w, wt = draw(2, 4, 5), draw(8, 4 // groups, 2), draw(4, 8 // groups, 3)
    for mine, theirs in (
        (F.conv1d(x, w, groups=groups), torch.conv1d(torch.tensor(x), torch.tensor(w), groups=groups)),
        (
            F.conv_transpose1d(x, wt, stride=2, groups=groups),
            torch.conv_transpose1d(torch.tensor(x), torch.tensor(wt), stride=2, groups=groups),
        ),
    ):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine, theirs.resolve_conj().numpy(), rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_empty_batch(name, groups):
    layer = getattr(jnn, name)(4, 8, 2, stride=2, groups=groups)
    x = ones(0, 4, 4, 4, dtype=np.float32)
    y = layer(x)
    assert y.shape == getattr(torch.nn, name)(4, 8, 2, stride=2, groups=groups)(torch.zeros(0, 4, 4, 4)).shape
    grads = jnn.value_and_grad(lambda model, x: model(x).sum())(layer, x)[1]
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("name", "fan_in"), [("Conv1d", 2 * 25), ("ConvTranspose1d", 40 * 25)])
def test_initial_distribution_of_grouped_layers(name, fan_in, key):
    params, _ = getattr(jnn.layers, name)(20, 400, 25, groups=10).init(key)
    bound = fan_in**-0.5
    for value in params.values():
        value = np.asarray(value) / bound
        assert 0.97 < np.abs(value).max() <= 1
        assert abs(value.mean()) < 5 / (3 * value.size) ** 0.5
        assert abs(value.std() - 3**-0.5) < 2 / value.size**0.5


GEOMETRIES = [
    (1, (3, 2), (2, 1), (1, 2), (1, 2)),
    (2, (2, 2), (1, 2), (0, 1), (1, 1)),
    (4, (3, 3), (2, 3), (1, 0), (2, 1)),
]


@pytest.mark.parametrize(("groups", "kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_lowerings_agree(groups, kernel, stride, padding, dilation, rng, monkeypatch):
    """What the CPU runs and what the other platforms run are one function."""
    x, bias = jnp.asarray(rng.standard_normal((2, 4, 6, 5))), jnp.asarray(rng.standard_normal(8))
    w, wt = (jnp.asarray(rng.standard_normal((a, b // groups, *kernel))) for a, b in ((8, 4), (4, 8)))
    extra = tuple(s - 1 for s in stride)

    def both():
        pads = [(p, p) for p in padding]
        forward = convolution.conv(x, w, bias, stride=stride, padding=pads, dilation=dilation, groups=groups)
        return forward, convolution.conv_transpose(
            x, wt, bias, stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=groups
        )

    here = both()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(here, both()):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_an_odd_same_padding_goes_to_the_right(rng):
    x, w = rng.standard_normal((1, 2, 5)), rng.standard_normal((3, 2, 4))
    np.testing.assert_allclose(F.conv1d(x, w, padding="same"), F.conv1d(F.pad(x, (1, 2)), w), rtol=1e-10)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize(
    ("steps", "channels", "outputs", "taps", "pad"), [(6, 3, 4, 3, 1), (1, 3, 4, 5, 2), (5, 3, 4, 2, 3), (260, 130, 140, 2, 0)]
)
def test_conv_tbc_is_conv1d_with_time_first(steps, channels, outputs, taps, pad, library, rng):
    shapes = (steps, 2, channels), (taps, channels, outputs), (outputs,)
    theirs = [torch.tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]
    y = torch.conv_tbc(*theirs, pad)
    slope = torch.tensor(rng.standard_normal(y.shape))
    with lowering(native=False, library=library):
        mine, pull = jax.vjp(lambda *arrays: F.conv_tbc(*arrays, pad), *(jnp.asarray(t.detach().numpy()) for t in theirs))
        slopes = pull(jnp.asarray(slope.numpy()))
    for a, b in zip((mine, *slopes), (y, *torch.autograd.grad(y, theirs, slope)), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9, atol=1e-10)


def test_conv_tbc_has_a_bias():
    x, w = jnp.ones((6, 2, 3)), jnp.ones((3, 3, 4))
    with pytest.raises(TypeError, match="conv_tbc: bias must be an array"):
        F.conv_tbc(x, w, None)


def test_nan_and_inf_reach_what_they_touch_only():
    x = ones(1, 1, 6).at[0, 0, 0].set(jnp.nan).at[0, 0, 5].set(jnp.inf)
    y = F.conv1d(x, ones(1, 1, 2))[0, 0]
    assert np.isnan(y[0])
    assert np.isinf(y[4])
    assert np.isfinite(y[1:4]).all()
    y = F.conv_transpose1d(x, ones(1, 1, 2), stride=2)[0, 0]
    np.testing.assert_array_equal(np.isnan(y), [True] * 2 + [False] * 10)
