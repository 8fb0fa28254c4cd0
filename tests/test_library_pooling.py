"""Maxima over windows by jnn's library for CPUs are what they are defined as, in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn.functional as F
from jnn.kernels import windows
from jnn.kernels.platform import lowering
from jnn.kernels.windows import Bins, Window

# Sizes of the planes, and by axis size, stride, dilation and places before the first.
SHAPES = {
    "in steps of the window": ((8, 40), ((2, 2, 1, 0), (2, 2, 1, 0))),
    "few and long": ((20, 33), ((10, 10, 1, 0), (9, 12, 1, 0))),
    "many of rows": ((9, 123), ((4, 5, 1, 0), (5, 6, 1, 0))),
    "one, of a part": ((13, 40), ((9, 9, 1, 0), (33, 33, 1, 0))),
    "overlapping": ((13, 70), ((3, 2, 1, 1), (3, 2, 1, 1))),
    "in steps of one": ((9, 37), ((3, 1, 1, 1), (5, 1, 1, 2))),
    "in long steps": ((20, 41), ((3, 5, 1, 0), (2, 7, 1, 1))),
    "in steps of three, dilated": ((15, 110), ((2, 3, 2, 1), (4, 3, 2, 3))),
    "of one place": ((3, 5), ((1, 1, 1, 0), (1, 2, 1, 0))),
    "along a row": ((301,), ((7, 2, 1, 3),)),
    "along a row, long": ((311,), ((18, 19, 1, 0),)),
    "along a row, a few longer": ((301,), ((100, 100, 1, 0),)),
    "along a row in steps of one": ((150,), ((3, 1, 1, 1),)),
    "along a row in long steps": ((131,), ((6, 5, 1, 2),)),
    "the whole plane": ((5, 7), ((5, 5, 1, 0), (7, 1, 1, 0))),
    "the whole of few places": ((3,), ((3, 3, 1, 0),)),
    "of small planes, overlapping": ((6, 5), ((3, 2, 1, 1), (3, 1, 1, 1))),
    "of small planes, dilated": ((7, 8), ((2, 1, 3, 1), (3, 3, 2, 2))),
    "of small volumes": ((3, 4, 3), ((2, 1, 1, 1), (3, 2, 1, 0), (2, 1, 1, 0))),
    "along a short row": ((13,), ((4, 2, 1, 1),)),
    "of volumes": ((5, 6, 19), ((2, 2, 1, 1), (3, 1, 2, 0), (3, 2, 1, 1))),
}
KINDS = {
    "ties": lambda rng, shape: rng.integers(0, 3, shape),
    "nan": lambda rng, shape: np.where(rng.random(shape) < 0.2, np.nan, rng.integers(0, 3, shape)),
    "infinite": lambda rng, shape: rng.choice([-np.inf, -np.inf, np.inf, 0.0], shape),
}


def _windows(sizes, axes):
    return tuple(Window(*axis, (n + 2 * axis[3] - axis[2] * (axis[0] - 1) - 1) // axis[1] + 1) for n, axis in zip(sizes, axes, strict=True))


BINS = {
    "bins": (Bins(83, 5), Bins(80, 3)),
    "bins that overlap": (Bins(1037, 4),),
    "bins of volumes": (Bins(15, 2), Bins(17, 3), Bins(29, 2)),
    "bins and windows": (Window(12, 12, 1, 0, 3), Bins(111, 4)),
    "narrow bins": (Bins(7, 3), Bins(9, 4)),
    "narrow bins of rows": (Bins(11, 4),),
    "narrow bins of volumes": (Bins(3, 2), Bins(4, 3), Bins(5, 2)),
    "bins of whole rows": (Bins(29, 2), Window(21, 21, 1, 0, 1)),
}
CASES = {
    **{name: (sizes, _windows(sizes, axes)) for name, (sizes, axes) in SHAPES.items()},
    # One window more than fits, as with ceil_mode.
    "past the end, of whole rows": ((3, 6), (Window(3, 2, 1, 0, 1), Window(3, 2, 1, 0, 3))),
    **{name: (tuple(w.size * (w.count if isinstance(w, Window) else 1) for w in bins), bins) for name, bins in BINS.items()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sizes", "static"), CASES.values(), ids=CASES)
def test_maxima_their_places_and_gradients_are_their_definition(sizes, static, kind, rng):

    def run(x):
        values, pull = jax.vjp(lambda x: windows.maximum(x, static, False)[0], x)
        g = jnp.arange(values.size, dtype=x.dtype).reshape(values.shape)
        return *windows.maximum(x, static, True), values, *pull(g)

    # Small planes, as many as vectors of several threads have lanes.
    planes = (5, 15) if np.prod(sizes) < 64 else (2, 3)
    for dtype in (np.float32, np.float64):
        x = jnp.asarray(KINDS[kind](rng, (*planes, *sizes)), dtype)
        np.testing.assert_array_equal(windows.maximum(x, static, False)[0], windows.maximum(x, static, True)[0])
        call = jax.jit(run).lower(x).compile()
        # Values, places and what the gradient needs of them.
        assert call.as_text().count('custom_call_target="jnn_maxima') == 1
        jax.clear_caches()
        with lowering(native=False, library=False):
            expected = jax.jit(run)(x)
        for a, b in zip(call(x), expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("sizes", "axes"),
    [
        ((7, 6), ((3, 2, 1, 1), (3, 1, 1, 1))),
        ((9, 5), ((2, 3, 1, 0), (2, 2, 2, 1))),
        ((4, 3, 5), ((3, 1, 1, 1), (2, 2, 1, 0), (5, 3, 1, 2))),
        ((13,), ((4, 2, 1, 1),)),
        # By slices forward.
        ((13,), ((4, 3, 1, 0),)),
        ((12,), ((3, 2, 1, 0),)),
        ((8, 9), ((3, 1, 1, 0), (3, 2, 1, 0))),
    ],
)
def test_sums_over_windows_are_those_of_slices(sizes, axes, rng):
    static = _windows(sizes, axes)

    def run(x):
        y, pull = jax.vjp(lambda x: windows.total(x, static), x)
        return y, *pull(y**2)

    x = rng.integers(-9, 9, (5, 15, *sizes)).astype(np.float32)
    call = jax.jit(run).lower(x).compile()
    assert "jnn_sample" in call.as_text()
    jax.clear_caches()
    with lowering(native=True):
        expected = jax.jit(run)(x)
    # Sums of integers that are exact.
    for a, b in zip(call(x), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # A number is in the sums of its own windows alone.
    x[0, 0].flat[0] = np.nan
    with lowering(native=True):
        held = np.isnan(windows.total(x, static))
    np.testing.assert_array_equal(np.isnan(call(x)[0]), held)


def _pooled(x):
    return F.max_pool2d(x, 3, 2, 1)


def _cubes(x):
    return (_pooled(x) ** 3).sum()


def _averaged_cubes(x):
    return (F.avg_pool2d(jnp.tile(x, (3, 4, 1, 1)), 3, 2) ** 3).sum()


DERIVATIVES = {
    "forward": lambda x: jax.jvp(_pooled, (x,), (x**2,)),
    "twice": lambda x: jax.jvp(jax.grad(_cubes), (x,), (x**2,)),
    "reverse twice": jax.grad(lambda x: (jax.grad(_cubes)(x) ** 2).sum()),
    "by sample": jax.vmap(jax.grad(_cubes)),
    "places by sample": jax.vmap(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)),
    "averages, twice": lambda x: jax.jvp(jax.grad(_averaged_cubes), (x,), (x**2,)),
    "averages by sample": jax.vmap(jax.grad(lambda x: _averaged_cubes(x[None]))),
    "in loops, computed again": jax.grad(
        lambda x: jax.lax.scan(lambda c, _: (c + jax.checkpoint(_cubes)(x + c), None), x.mean(), None, 2)[0],
    ),
    "adaptive": jax.grad(lambda x: (F.adaptive_max_pool2d(x, (3, 4)) ** 3).sum()),
    "fractional": jax.grad(lambda x: (F.fractional_max_pool2d(x, 2, 3, _random_samples=jnp.full((2, 3, 2), 0.3)) ** 3).sum()),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_xlas(name, rng, quick_compilation):
    x = jnp.asarray(rng.standard_normal((2, 3, 7, 9)))

    def run():
        jax.clear_caches()
        return jax.tree.leaves(jax.jit(DERIVATIVES[name])(x))

    found = run()
    with lowering(native=True):
        for a, b in zip(found, run(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("check_vma", [True, False])
def test_devices_each_find_maxima_by_the_library(check_vma, rng):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(rng.standard_normal((4, 3, 7, 9)))
    each = jax.jit(jax.shard_map(jax.grad(_cubes), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"), check_vma=check_vma))
    assert "jnn_maxima" in each.lower(x).as_text()
    assert "jnn_sample_by_rows" in each.lower(x).as_text()
    np.testing.assert_array_equal(each(x), jax.grad(_cubes)(x))
    np.testing.assert_array_equal(jax.pmap(jax.grad(_cubes))(x[:, None])[:, 0], each(x))


def test_what_the_library_has_not_is_left_to_xla(rng):
    x = jnp.asarray(rng.integers(-9, 9, (2, 3, 8, 8)))
    for dtype in (jnp.bfloat16, np.int32):
        assert "jnn_maxima" not in jax.jit(lambda x: F.max_pool2d(x, 2, return_indices=True)).lower(x.astype(dtype)).as_text()
    # Its first window ends before the first place, and its last begins behind the last.
    nowhere = F.max_pool1d(jnp.ones((1, 1, 1)), 2, 1, 1, 2)
    np.testing.assert_array_equal(nowhere, [[[-np.inf]]])
