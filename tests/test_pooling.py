"""What the table cannot say of pooling: ties, NaN, edges, refusals, draws."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
from jnn import functional as F

TF = torch.nn.functional
NAN, INF = np.nan, np.inf


def both(name, x, *args, **kw):
    """Values, indices and the gradient of the values on both sides."""
    t = torch.tensor(x, requires_grad=True)
    values, indices = getattr(TF, name)(t, *args, return_indices=True, **kw)
    ct = np.random.default_rng(0).integers(-9, 9, values.shape).astype(float)
    (grad,) = torch.autograd.grad(values, t, torch.tensor(ct))
    pool = getattr(F, name)
    mine = pool(x, *args, return_indices=True, **kw)
    backward = jax.grad(lambda x: jnp.sum(pool(x, *args, **kw) * ct))(jnp.asarray(x))
    return (*mine, backward), (values.detach().numpy(), indices.numpy(), grad.numpy())


HARD = {
    "ties": lambda rng, shape: rng.integers(0, 3, shape).astype(float),
    "nan": lambda rng, shape: np.where(rng.random(shape) < 0.3, NAN, rng.integers(0, 3, shape)),
    "infinite": lambda rng, shape: rng.choice([-INF, -INF, -INF, INF, 0.0], shape),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize(
    ("name", "shape", "args"),
    [
        ("max_pool1d", (2, 3, 40), (5, 2, 2, 1, True)),
        ("max_pool2d", (2, 3, 12, 13), ((4, 3), (3, 1), (2, 1), (1, 2), True)),
        ("max_pool2d", (2, 64, 66), (11, 3, 5)),
        ("max_pool2d", (2, 32, 32), (16,)),
        ("max_pool3d", (2, 2, 6, 7, 5), (3, 2, 1)),
        ("adaptive_max_pool2d", (2, 3, 10, 12), ((4, 5),)),
        ("adaptive_max_pool3d", (2, 6, 5, 4), ((2, None, 3),)),
        ("fractional_max_pool2d", (1, 2, 9, 9), (3, 4, None)),
    ],
)
def test_ties_nan_and_infinities_go_where_torch_sends_them(name, shape, args, kind):
    rng = np.random.default_rng(0)
    kw = {"_random_samples": rng.random((1, 2, 2))} if name.startswith("fractional") else {}
    x = HARD[kind](rng, shape)
    t = {k: torch.tensor(v) for k, v in kw.items()}
    mine, theirs = both(name, x, *args) if not kw else _fractional(name, x, args, kw, t)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def _fractional(name, x, args, kw, kw_torch):
    mine = getattr(F, name)(x, *args, return_indices=True, **kw)
    theirs = getattr(TF, name)(torch.tensor(x), *args, return_indices=True, **kw_torch)
    return mine, [o.numpy() for o in theirs]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, -2.0, INF, -INF])
def test_lp_pool_of_zeros_has_torchs_value_and_gradient(p):
    x = np.array([[0.0, 0.0, 0.0, 2.0, 3.0, 1.0]])
    t = torch.tensor(x, requires_grad=True)
    y = TF.lp_pool1d(t, p, 2)
    mine, vjp = jax.vjp(lambda x: F.lp_pool1d(x, p, 2), jnp.asarray(x))
    np.testing.assert_allclose(mine, y.detach().numpy(), rtol=1e-12)
    if p > 0:
        np.testing.assert_allclose(vjp(jnp.ones_like(mine))[0], torch.autograd.grad(y.sum(), t)[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_mean_is_spoilt_by_its_own_places_only(bad):
    x = np.zeros((1, 10, 10))
    x[0, 4, 6] = bad
    for name, args in [("avg_pool2d", (3, 2, 1)), ("adaptive_avg_pool2d", ((4, 3),)), ("adaptive_avg_pool2d", ((5, 2),))]:
        np.testing.assert_array_equal(getattr(F, name)(x, *args), getattr(TF, name)(torch.tensor(x), *args).numpy())


@pytest.mark.parametrize(
    ("name", "args"),
    [("max_pool2d", (3, 2, 1)), ("avg_pool2d", (2,)), ("avg_pool2d", (2, 2, 0, False, True, -3)), ("lp_pool2d", (2.0, 2))],
)
def test_integers(name, args):
    x = np.random.default_rng(0).integers(-9, 9, (2, 4, 5))
    mine, theirs = getattr(F, name)(x, *args), getattr(TF, name)(torch.tensor(x), *args)
    assert str(mine.dtype) == str(theirs.dtype).removeprefix("torch.")
    np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "args", "expected"),
    [
        ("max_pool2d_with_indices", (0, 3, 6, 6), (2,), (0, 3, 3, 3)),
        ("avg_pool3d", (0, 3, 6, 6, 6), (2,), (0, 3, 3, 3, 3)),
        ("adaptive_avg_pool2d", (0, 3, 5, 5), (2,), (0, 3, 2, 2)),
        ("adaptive_avg_pool2d", (2, 0, 5, 5), (2,), (2, 0, 2, 2)),
        ("adaptive_avg_pool1d", (3, 5), (0,), (3, 0)),
        ("adaptive_max_pool2d_with_indices", (2, 5, 5), ((0, 3),), (2, 0, 3)),
        ("fractional_max_pool2d_with_indices", (0, 3, 6, 6), (2, 3), (0, 3, 3, 3)),
        ("fractional_max_pool3d", (3, 6, 6, 6), (2, (0, 2, 2)), (3, 0, 2, 2)),
    ],
)
def test_empty_batches_and_outputs(name, shape, args, expected):
    outs = jax.tree.leaves(getattr(F, name)(jnp.ones(shape), *args))
    assert all(o.shape == expected for o in outs)
    assert [str(o.dtype) for o in outs[1:]] == ["int64"] * (len(outs) - 1)


def test_indices_are_int32_without_x64():
    with jax.enable_x64(False):
        _, indices = F.max_pool2d(np.ones((1, 4, 4), np.float32), 2, return_indices=True)
        assert indices.dtype == np.int32
        np.testing.assert_array_equal(indices, [[[0, 2], [8, 10]]])
        assert F.max_unpool2d(np.ones((1, 2, 2), np.float32), indices, 2).sum() == 4


def test_unpool_undoes_overlapping_windows_and_gives_each_place_its_gradient():
    x = np.arange(25.0).reshape(1, 5, 5)
    values, indices = F.max_pool2d(x, 3, 1, return_indices=True, padding=1)
    y, vjp = jax.vjp(lambda v: F.max_unpool2d(v, indices, 3, 1, 1), values)
    t = torch.tensor(np.asarray(values), requires_grad=True)
    theirs = TF.max_unpool2d(t, torch.tensor(np.asarray(indices)), 3, 1, 1)
    np.testing.assert_array_equal(y, theirs.detach().numpy())
    ct = np.random.default_rng(0).integers(-9, 9, y.shape).astype(float)
    np.testing.assert_array_equal(vjp(jnp.asarray(ct))[0], torch.autograd.grad(theirs, t, torch.tensor(ct))[0].numpy())


@pytest.mark.parametrize("bad", [-1, 16])
def test_an_index_outside_of_the_plane_is_refused_when_known_and_spoils_the_plane_when_traced(bad):
    x, indices = np.ones((2, 1, 2)), np.array([[[0, 5]], [[bad, 3]]])
    with pytest.raises(RuntimeError, match=rf"max_unpool2d: indices must be in \[0, 7\], got indices={bad}"):
        F.max_unpool2d(x, indices, 2)
    y = jax.jit(lambda x, i: F.max_unpool2d(x, i, 2))(x, indices)
    assert jnp.isfinite(y[0]).all()
    assert jnp.isnan(y[1]).all()


def test_fractional_windows_are_drawn_anew_from_the_key():
    x = jnp.arange(400.0).reshape(1, 20, 20)
    pool = jnn.layers.FractionalMaxPool2d(2, output_ratio=0.4)
    draw = jax.jit(lambda key: pool.apply({}, {}, x, key=key)[0])
    keys = jax.random.split(jax.random.key(0), 50)
    np.testing.assert_array_equal(draw(keys[0]), F.fractional_max_pool2d(x, 2, 8, key=_stream_key(pool, keys[0])))
    drawn = jax.vmap(draw)(keys)
    assert len(np.unique(drawn, axis=0)) > 20
    assert (drawn[:, 0, -1, -1] == 399).all()
    with pytest.raises(RuntimeError, match="random numbers need a key"):
        pool.apply({}, {}, x)


def _stream_key(spec, key):
    from jnn.core import rng

    return rng.KeyStream(key).draw(spec, "")


def test_modules_keep_what_the_user_gave():
    assert jnn.MaxPool2d(3).stride == 3
    assert jnn.AvgPool1d(3).stride == (3,)
    assert jnn.MaxUnpool2d(3).stride == (3, 3)
    assert jnn.LPPool2d(2, 3).stride is None
    samples = np.full((1, 2, 2), 0.5)
    assert [*jnn.FractionalMaxPool2d(2, 3, _random_samples=samples).state_dict()] == ["_random_samples"]


@pytest.mark.parametrize("name", [n for n in dir(F) if n.endswith("_with_indices")])
def test_with_indices_is_the_function_with_its_argument_set(name):
    mine, plain = getattr(F, name), getattr(F, name.removesuffix("_with_indices"))
    assert inspect.signature(mine) == inspect.signature(plain)
    assert mine.__name__ == name


@pytest.mark.parametrize("window", [61, 64, 96])
def test_programs_stay_small_for_large_windows(window):
    jaxpr = jax.make_jaxpr(lambda x: F.max_pool1d(x, window, 1))(jnp.ones((1, 300)))
    assert len(str(jaxpr).splitlines()) < 150


X4 = np.zeros((2, 3, 6, 6))
I4 = np.zeros((2, 3, 6, 6), np.int64)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: F.max_pool2d(X4, 0), RuntimeError, "max_pool2d: kernel_size must be at least 1, got kernel_size=0"),
        (lambda: F.max_pool2d(X4, 2, 0), RuntimeError, "stride must be at least 1"),
        (lambda: F.max_pool2d(X4, 2, 2, -1), RuntimeError, "padding must be at least 0"),
        (lambda: F.max_pool2d(X4, 2, 2, 2), RuntimeError, "padding must be at most half of the window"),
        (lambda: F.max_pool2d(X4, 2, dilation=0), RuntimeError, "dilation must be at least 1"),
        (lambda: F.max_pool2d(X4, 9), RuntimeError, "smaller than the window"),
        (lambda: F.max_pool2d(X4, (2, 2, 2)), RuntimeError, "kernel_size must be an int or 2 ints"),
        (lambda: F.max_pool2d(X4, 2.5), TypeError, "kernel_size must be an integer"),
        (lambda: F.max_pool2d(X4[0, 0], 2), RuntimeError, "input must be 3D or 4D"),
        (lambda: F.max_pool2d(X4[:, :0], 2), RuntimeError, "input must be empty in the batch only"),
        (lambda: F.max_pool2d(X4 > 0, 2), NotImplementedError, "input must be real numbers"),
        (lambda: F.avg_pool2d(X4, 2, divisor_override=0), RuntimeError, "divisor_override must not be zero"),
        (lambda: F.avg_pool2d(X4.astype(np.int32), 2), NotImplementedError, "input must be floating point or int64"),
        (lambda: F.lp_pool2d(X4, 0, 2), ZeroDivisionError, "norm_type must not be zero"),
        (lambda: F.adaptive_avg_pool2d(X4, -1), RuntimeError, "output_size must be at least 0"),
        (lambda: F.adaptive_avg_pool2d(X4, (3,)), RuntimeError, "output_size must be an int or 2 ints"),
        (lambda: F.adaptive_avg_pool2d(X4, None), TypeError, "output_size must be an integer"),
        (lambda: F.adaptive_avg_pool1d(X4[0], (None,)), TypeError, "output_size must be an integer"),
        (lambda: F.adaptive_avg_pool2d(X4[:, :, :0], 3), RuntimeError, "input must be empty in the batch only"),
        (lambda: F.adaptive_max_pool2d(X4[:, :0], 3), RuntimeError, "input must be empty in the batch only"),
        (lambda: F.adaptive_max_pool2d(I4, 3), NotImplementedError, "input must be floating point"),
        (lambda: F.fractional_max_pool2d(X4, 2), ValueError, "output_size or output_ratio must be given"),
        (lambda: F.fractional_max_pool2d(X4, 2, output_ratio=(0.5,) * 3), ValueError, "output_ratio must be"),
        (lambda: F.fractional_max_pool2d(X4, 2, 6), RuntimeError, "kernel_size is too large"),
        (lambda: F.fractional_max_pool3d(X4, 2, 2), RuntimeError, "kernel_size is too large"),
        (lambda: F.fractional_max_pool2d(X4, 2, 3, _random_samples=np.zeros((1, 3, 2))), RuntimeError, r"must be \(N, C, 2\)"),
        (lambda: F.fractional_max_pool2d(X4, 2, 3, _random_samples=np.zeros((2, 3, 2), "f")), RuntimeError, "one dtype"),
        (lambda: F.max_unpool2d(X4, I4.astype(np.int32), 2), RuntimeError, "indices must be int64"),
        (lambda: F.max_unpool2d(X4, I4[0], 2), RuntimeError, "one shape"),
        (lambda: F.max_unpool2d(I4, I4, 2), NotImplementedError, "input must be floating point"),
        (lambda: F.max_unpool2d(X4, I4, 2, output_size=(10, 12)), ValueError, "output_size must be within"),
        (lambda: F.max_unpool2d(X4, I4, 2, output_size=(12,)), ValueError, "output_size must have 2 or 4"),
        (lambda: F.max_unpool2d(X4, I4, 2, output_size=12), TypeError, "output_size must be a sequence"),
        (lambda: F.max_unpool2d(X4[:, :, 0, 0], I4[:, :, 0, 0], 2), RuntimeError, "input must be 3D or 4D"),
        (lambda: jnn.MaxPool2d(2.5), TypeError, "MaxPool2d: kernel_size must be an integer"),
        (lambda: jnn.AdaptiveAvgPool2d(-1), RuntimeError, "AdaptiveAvgPool2d: output_size must be at least 0"),
        (lambda: jnn.AvgPool2d(2, divisor_override=0), RuntimeError, "AvgPool2d: divisor_override must not be zero"),
        (lambda: jnn.FractionalMaxPool2d(2), ValueError, "either output_size or output_ratio"),
        (lambda: jnn.FractionalMaxPool2d(2, 3, 0.5), ValueError, "either output_size or output_ratio"),
        (lambda: jnn.FractionalMaxPool2d(2, output_ratio=1.5), ValueError, "output_ratio must be between 0 and 1"),
        (lambda: jnn.FractionalMaxPool3d(0, 3), ValueError, "kernel_size must be at least 1"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_images_whose_sizes_are_left_open(rng):
    w, bias = jnp.asarray(rng.standard_normal((4, 3, 3, 3))), jnp.asarray(rng.standard_normal(4))

    @jax.jit
    def layers(x):
        x = F.conv2d(x, w, bias, stride=2, padding=1)
        pools = F.max_pool2d(x, 3, 2, 1, return_indices=True), F.max_pool2d(x, 2), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1)
        uneven = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return pools, uneven, F.unfold(x, 3, padding=1)

    sizes = jax.export.symbolic_shape("8 * h, 8 * w")
    exported = jax.export.export(layers)(jax.ShapeDtypeStruct((2, 3, *sizes), w.dtype))
    for size in ((8, 24), (16, 8)):
        x = jnp.asarray(rng.standard_normal((2, 3, *size)))
        for a, b in zip(jax.tree.leaves(exported.call(x)), jax.tree.leaves(layers(x)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
