"""Resampling, grids and their refusals: what the table does not say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
from jnn import functional as F
from jnn.kernels.library import loaded
from jnn.kernels.platform import lowering


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((1, 1, 4), {}, ValueError, "interpolate: give size or scale_factor"),
        ((1, 1, 4), {"size": 2, "scale_factor": 2}, ValueError, "give size or scale_factor, not both"),
        ((1, 1, 4), {"size": (2, 2)}, ValueError, "size must have one value per spatial dimension"),
        ((1, 1, 4), {"scale_factor": (2, 2)}, ValueError, "scale_factor must have one value per spatial dimension"),
        ((1, 1, 4), {"size": 2.5}, TypeError, "size must be an integer"),
        ((1, 1, 4), {"size": 0}, RuntimeError, "input and output must not be empty"),
        ((1, 1, 0), {"size": 2}, RuntimeError, "input and output must not be empty"),
        ((1, 1, 4), {"size": 2, "align_corners": True}, ValueError, "align_corners must be None for mode 'nearest'"),
        ((1, 1, 4), {"size": 2, "recompute_scale_factor": True}, ValueError, "recompute_scale_factor goes with scale_factor only"),
        ((1, 1, 4), {"size": 2, "mode": "bilinear"}, NotImplementedError, r"interpolate: input must be 4D, got input.shape=\(1, 1, 4\)"),
        ((1, 4), {"size": 2}, NotImplementedError, "input must be 3D or 4D or 5D"),
        ((1, 1, 4), {"size": 2, "mode": "cubic"}, NotImplementedError, "mode must be one of nearest, .*got mode='cubic'"),
        ((1, 1, 4), {"size": 2, "mode": "linear", "antialias": True}, ValueError, "antialias needs four dimensions and a mode of bilinear"),
        ((1, 1, 4, 4), {"size": 2, "mode": "lanczos"}, ValueError, "mode 'lanczos' needs antialias=True"),
    ],
)
def test_interpolate_refuses(shape, options, error, message):
    with pytest.raises(error, match=message):
        F.interpolate(jnp.ones(shape), **options)


@pytest.mark.parametrize("mode", ["linear", "area"])
def test_integers_cannot_be_averaged(mode):
    with pytest.raises(RuntimeError, match="the input must be floating point for mode"):
        F.interpolate(jnp.ones((1, 1, 4), int), 2, mode=mode)


@pytest.mark.parametrize("out", [(3, 11), (9, 2), (16, 7)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *((mode, {"align_corners": corners, "antialias": True}) for mode in ("bilinear", "bicubic") for corners in (True, False)),
        ("lanczos", {"antialias": True}),
        ("nearest", {}),
        ("nearest-exact", {}),
    ],
)
def test_resampling_as_torch(mode, options, out, rng):
    x = rng.standard_normal((1, 2, 9, 7))
    theirs = torch.nn.functional.interpolate(torch.tensor(x), out, mode=mode, **options).numpy()
    np.testing.assert_allclose(F.interpolate(jnp.asarray(x), out, mode=mode, **options), theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_bytes_are_rounded(mode, rng):
    x = rng.integers(0, 256, (1, 2, 5, 6)).astype(np.uint8)
    y = F.interpolate(jnp.asarray(x), (8, 3), mode=mode)
    theirs = torch.nn.functional.interpolate(torch.tensor(x), (8, 3), mode=mode).numpy()
    assert y.dtype == jnp.uint8
    assert np.abs(np.asarray(y, int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "area"])
def test_an_infinity_stays_among_its_neighbours(mode):
    x = jnp.zeros((1, 1, 8, 8)).at[0, 0, 0, 0].set(jnp.inf)
    y = F.interpolate(x, (4, 4), mode=mode)
    assert not jnp.isnan(y).any()
    assert int(jnp.isinf(y).sum()) == 1


_MODES = [
    ("nearest", {}),
    ("nearest-exact", {}),
    ("area", {}),
    ("bilinear", {}),
    ("bilinear", {"align_corners": True}),
    ("bicubic", {}),
    ("bicubic", {"antialias": True}),
]


@pytest.mark.parametrize(("mode", "options"), _MODES)
@pytest.mark.parametrize(("size", "out"), [((4, 3), (8, 9)), ((8, 9), (4, 3)), ((5, 7), (9, 4)), ((1, 2), (3, 1))])
@pytest.mark.parametrize("library", [False, True])
def test_gradients_are_resamplings(mode, options, size, out, library, rng):
    jax.clear_caches()
    with lowering(native=False, library=library):
        _compare_gradients(mode, options, size, out, library and loaded() is not None, rng)


def _compare_gradients(mode, options, size, out, by_library, rng):
    x, g = jnp.asarray(rng.standard_normal((2, 1, *size))), jnp.asarray(rng.standard_normal((2, 1, *out)))

    def f(x):
        return F.interpolate(x, out, mode=mode, **options)

    def gradient(x):
        return jax.vjp(f, x)[1](g)[0]

    # Forward mode, which takes no gradients, says what they are.
    by_columns = jnp.einsum("nchw,nchwabij->abij", g, jax.jacfwd(f)(x))
    np.testing.assert_allclose(gradient(x), by_columns, rtol=1e-9, atol=1e-12)
    assert "scatter" not in str(jax.make_jaxpr(gradient)(x))
    by_sample = jax.vmap(lambda x, g: jax.vjp(lambda x: f(x[None])[0], x)[1](g)[0])
    np.testing.assert_allclose(by_sample(x, g), gradient(x), rtol=1e-9, atol=1e-12)
    if by_library:
        assert "gather" not in jax.jit(by_sample).lower(x, g).as_text(), "the library's loops, by sample too"
    twice = jax.vjp(lambda g: jax.vjp(f, x)[1](g)[0], g)[1](x)[0]
    np.testing.assert_allclose(twice, f(x), rtol=1e-9, atol=1e-12, err_msg="the transposition of the transposition")


def test_gradients_keep_the_dtype_and_their_infinities_apart():
    x = jnp.ones((1, 1, 4, 4), jnp.bfloat16)
    y, pull = jax.vjp(lambda x: F.interpolate(x, (8, 8), mode="nearest"), x)
    (slope,) = pull(jnp.zeros_like(y).at[0, 0, 3, 2].set(jnp.inf))
    assert slope.dtype == jnp.bfloat16
    assert int(jnp.isinf(slope).sum()) == 1
    assert not jnp.isnan(slope).any()
    empty = jax.grad(lambda x: F.interpolate(x, (0, 2), mode="area").sum())(jnp.ones((1, 1, 4, 4)))
    np.testing.assert_array_equal(empty, jnp.zeros((1, 1, 4, 4)), err_msg="nothing reads it")


def test_deprecated_functions_warn():
    x = jnp.ones((1, 1, 2, 2))
    for function in (F.upsample, F.upsample_nearest, F.upsample_bilinear):
        with pytest.warns(UserWarning, match=f"{function.__name__}: deprecated, use interpolate"):
            assert function(x, scale_factor=2).shape == (1, 1, 4, 4)


def test_upsample_keeps_what_it_was_given():
    made = jnn.Upsample(scale_factor=[2, 3], mode="bilinear")
    assert made.scale_factor == (2.0, 3.0)
    assert isinstance(jnn.Upsample(scale_factor=2).scale_factor, float)
    assert jnn.UpsamplingBilinear2d(4).align_corners


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("mode", "padding"), [*itertools.product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"))])
def test_sampling_far_outside_and_on_the_borders(mode, padding, aligned, rng):
    x, grid = rng.standard_normal((2, 2, 4, 3)), rng.uniform(-3, 3, (2, 2, 5, 2))
    grid[0, 0] = [[-1, -1], [1, 1], [-1, 1], [0, 0], [1e6, -1e6]]
    ours = jnp.asarray(x), jnp.asarray(grid)
    theirs = torch.tensor(x, requires_grad=True), torch.tensor(grid, requires_grad=True)
    expected = torch.nn.functional.grid_sample(*theirs, mode, padding, aligned)
    (expected**2).sum().backward()
    y, vjp = jax.vjp(lambda x, grid: F.grid_sample(x, grid, mode, padding, aligned), *ours)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-7, atol=1e-9)
    for mine, tensor in zip(vjp(2 * y), theirs, strict=True):
        np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sizes", [((10, 8), (20, 12)), ((11, 4), (18, 22)), ((3, 4, 8), (6, 22, 38))])
def test_points_between_two_elements_have_the_one_that_torch_takes(sizes, aligned, library):
    space, out = sizes
    x = np.arange(np.prod(space), dtype=np.float32).reshape(1, 1, *space)
    theta = np.eye(len(space), len(space) + 1, dtype=np.float32)[None]
    theirs = torch.nn.functional.affine_grid(torch.tensor(theta), (1, 1, *out), aligned)
    with lowering(native=False, library=library):
        points = F.affine_grid(jnp.asarray(theta), (1, 1, *out), aligned)
        y = jax.jit(lambda x: F.grid_sample(x, points, "nearest", align_corners=aligned))(x)
    np.testing.assert_array_equal(points, theirs)
    np.testing.assert_array_equal(y, torch.nn.functional.grid_sample(torch.tensor(x), theirs, "nearest", align_corners=aligned))


def test_a_point_that_is_nan_gives_nan_and_spoils_no_gradient():
    x, grid = jnp.ones((1, 1, 2, 2)), jnp.zeros((1, 1, 2, 2)).at[0, 0, 0, 0].set(jnp.nan)
    y, vjp = jax.vjp(lambda x: F.grid_sample(x, grid, align_corners=False), x)
    assert jnp.isnan(y[0, 0, 0, 0])
    assert jnp.isfinite(y[0, 0, 0, 1])
    assert jnp.isfinite(vjp(jnp.ones_like(y))[0]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, g: F.grid_sample(x, g, "cubic"), ValueError, "grid_sample: mode must be one of 'bilinear'"),
        (lambda x, g: F.grid_sample(x, g, padding_mode="wrap"), ValueError, "grid_sample: padding_mode must be one of 'zeros'"),
        (lambda x, g: F.grid_sample(x[0], g, align_corners=True), RuntimeError, "grid_sample: input must be 4D or 5D"),
        (lambda x, g: F.grid_sample(x, g[0], align_corners=True), RuntimeError, "input and grid must have the same number of dimensions"),
        (lambda x, g: F.grid_sample(x, g[:1], align_corners=True), RuntimeError, "input and grid must have the same batch size"),
        (lambda x, g: F.grid_sample(x, g[..., :1], align_corners=True), RuntimeError, "the last dimension of grid must be"),
        (lambda x, g: F.grid_sample(x[:, :, :0], g, align_corners=True), RuntimeError, "the input must have elements in space"),
        (lambda x, g: F.grid_sample(x, g.astype(jnp.float32), align_corners=True), RuntimeError, "input, grid must have one dtype"),
        (lambda x, g: F.affine_grid(g, (2, 1, 3, 3), True), ValueError, r"affine_grid: theta must be \(N, 2, 3\)"),
        (lambda x, g: F.affine_grid(g[:, 0], (2, 1, 3), True), NotImplementedError, "affine_grid: size must have 4 or 5 entries"),
        (lambda x, g: F.affine_grid(jnp.ones((2, 2, 3)), (2, 1, 0, 3), True), ValueError, "affine_grid: size must be positive"),
        (lambda x, g: F.affine_grid(jnp.ones((2, 2, 3), int), (2, 1, 3, 3), True), ValueError, "theta must be floating point"),
    ],
)
def test_grids_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 1, 3, 3)), jnp.ones((2, 3, 3, 2)))


def test_the_default_of_align_corners_warns():
    with pytest.warns(UserWarning, match="affine_grid: align_corners is False unless given"):
        grid = F.affine_grid(jnp.eye(2, 3)[None], (1, 1, 2, 2))
    with pytest.warns(UserWarning, match="grid_sample: align_corners is False unless given"):
        np.testing.assert_allclose(F.grid_sample(jnp.arange(4.0).reshape(1, 1, 2, 2), grid).ravel(), np.arange(4.0), atol=1e-12)
