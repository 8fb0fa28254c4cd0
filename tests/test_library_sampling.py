"""Sampling, embeddings and bags by jnn's library for CPUs: each is what it is defined as, in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn.functional as F
from jnn.kernels import resampling
from jnn.kernels.platform import lowering

from .derivatives import same
from .oracle import quick_jit

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _both(run, *arrays, target="jnn_sample"):
    """What ``run`` gives by the library and without it."""
    jax.clear_caches()
    call = jax.jit(lambda *a: run(*a)).lower(*arrays)
    assert target in call.as_text()
    found = call.compile()(*arrays)
    with lowering(native=False, library=False):
        jax.clear_caches()
        return jax.tree.leaves(found), jax.tree.leaves(quick_jit(lambda *a: run(*a))(*arrays))


# Input and grid.
GRIDS = {
    "few channels": ((2, 3, 5, 7), (2, 4, 6, 2)),
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 2)),
    "one channel": ((3, 1, 9, 8), (3, 7, 5, 2)),
    "channels more than a block": ((2, 21, 6, 5), (2, 5, 9, 2)),
    "blocks of channels": ((2, 32, 17, 16), (2, 16, 16, 2)),
    "few points": ((1, 18, 40, 30), (1, 2, 3, 2)),
    "more points than a block": ((2, 3, 9, 8), (2, 37, 31, 2)),
    "volumes": ((2, 5, 4, 3, 6), (2, 3, 4, 5, 3)),
}


# Cubics are of images only.
SAMPLES = [(name, mode) for name in GRIDS for mode in ("bilinear", "nearest", "bicubic") if (name, mode) != ("volumes", "bicubic")]


@pytest.mark.parametrize(("padding", "aligned"), [("zeros", False), ("border", True), ("reflection", False), ("reflection", True)])
@pytest.mark.parametrize(("name", "mode"), SAMPLES)
def test_grid_sample(name, mode, padding, aligned, rng):
    shape, points = GRIDS[name]
    x, grid = rng.standard_normal(shape), rng.uniform(-1.6, 1.6, points)
    grid.flat[3:5] = np.nan, np.inf
    slope = rng.standard_normal((*shape[:2], *points[1:-1]))

    def run(x, grid, slope):
        y, pull = jax.vjp(lambda x, grid: F.grid_sample(x, grid, mode, padding, aligned), x, grid)
        return y, *pull(slope)

    for dtype, rtol in ((np.float64, 1e-11), (np.float32, 1e-4)):
        same(*_both(run, *(jnp.asarray(a, dtype) for a in (x, grid, slope)), target="jnn_grid_sample"), rtol)


BAGS = {"bags": (6, 5), "one of one": (1, 1), "many": (40, 12)}


@pytest.mark.parametrize("mode", ["sum", "mean", "weighted"])
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("width", [3, 70, 257])
@pytest.mark.parametrize("shape", BAGS.values(), ids=BAGS)
@pytest.mark.parametrize("ragged", [False, True])
def test_embedding_bag(shape, width, padding_idx, mode, ragged, rng):
    index = rng.integers(0, 11, shape)
    offsets = np.sort(np.append(0, rng.integers(0, index.size + 1, 4))) if ragged else None
    index = index.ravel() if ragged else index
    table, factors = rng.standard_normal((11, width)), rng.standard_normal(index.shape)
    slope = rng.standard_normal((5 if ragged else shape[0], width))

    def run(index, table, factors, slope):
        def bag(table, factors):
            how = {"mode": "sum", "per_sample_weights": factors} if mode == "weighted" else {"mode": mode}
            return F.embedding_bag(index, table, None if offsets is None else jnp.asarray(offsets), padding_idx=padding_idx, **how)

        y, pull = jax.vjp(bag, table, factors)
        return y, *pull(slope)

    dtype, rtol = (np.float32, 1e-4) if width == 70 else (np.float64, 1e-11)
    same(*_both(run, jnp.asarray(index), *(jnp.asarray(a, dtype) for a in (table, factors, slope))), rtol)


@pytest.mark.parametrize("count", [3, 5000])
@pytest.mark.parametrize(("rows", "width"), [(90, 1), (90, 5), (90, 64), (90, 300), (4, 300), (20000, 33)])
def test_embedding(rows, width, count, rng):
    index, table, slope = rng.integers(0, rows, count), rng.standard_normal((rows, width)), rng.standard_normal((count, width))

    def run(index, table, slope):
        y, pull = jax.vjp(lambda table: F.embedding(index, table, padding_idx=1), table)
        return y, *pull(slope)

    same(*_both(run, *map(jnp.asarray, (index, table, slope))), 1e-11)


def test_indices_out_of_range_give_nan_and_no_gradient(rng):
    index, table = jnp.asarray([[0, -1], [5, 2], [1, 1]]), jnp.asarray(rng.standard_normal((3, 4)))

    def run(index, table):
        y, pull = jax.vjp(lambda table: F.embedding_bag(index, table, mode="sum"), table)
        return y, *pull(jnp.ones_like(y))

    found, expected = _both(run, index, table)
    same(found, expected, 1e-12)
    assert np.isnan(found[0][:2]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("library", [True, False])
def test_channel_shuffle(library, rng):
    x = jnp.asarray(rng.standard_normal((3, 2, 12, 5, 7)))
    g = jnp.asarray(rng.standard_normal(x.shape))
    expected, back = (a.reshape(3, 2, *cut, 5, 7).swapaxes(2, 3).reshape(x.shape) for a, cut in ((x, (3, 4)), (g, (4, 3))))
    jax.clear_caches()
    with lowering(native=False, library=library):
        # By sample as for all of them.
        call = jax.jit(jax.vmap(lambda x, g: jax.vjp(lambda x: F.channel_shuffle(x, 3), x)[1](g)[0])).lower(x, g)
        assert ("jnn_sample" in call.as_text()) == library
        np.testing.assert_array_equal(call.compile()(x, g), back)
        np.testing.assert_array_equal(F.channel_shuffle(x[0], 3), expected[0])


def _sampled(x, grid):
    return F.grid_sample(x, grid, align_corners=False)


DERIVATIVES = {
    "forward": lambda f: lambda x, grid: jax.jvp(f, (x, grid), (x**2, grid**2)),
    "twice": lambda f: lambda *a: jax.jvp(jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1)), a, a),
    "reverse twice": lambda f: jax.grad(lambda *a: (jax.grad(lambda *a: (f(*a) ** 3).sum(), 1)(*a) ** 2).sum(), (0, 1)),
    "by sample": lambda f: (
        lambda *a: jax.vmap(jax.grad(lambda x, grid: (f(x[None], grid[None]) ** 2).sum(), (0, 1)), (0, None))(a[0], a[1][0])
    ),
    "in loops, computed again": lambda f: jax.grad(
        lambda x, grid: jax.lax.scan(lambda c, _: (jax.checkpoint(f)(c, grid), None), x, None, 2)[0].sum(), (0, 1)
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_xlas(name, rng):
    x, grid = jnp.asarray(rng.standard_normal((2, 3, 5, 6))), jnp.asarray(rng.uniform(-1.2, 1.2, (2, 5, 6, 2)))
    target = "" if name == "by sample" else "jnn_grid_sample"
    same(*_both(DERIVATIVES[name](_sampled), x, grid, target=target), 1e-9)


def test_tables_of_other_types_are_left_to_xla(rng):
    index = jnp.asarray([[0, 1], [2, 2]])
    for dtype in (jnp.bfloat16, np.int32):
        table = jnp.asarray(rng.integers(0, 9, (3, 4)), dtype)
        assert "jnn_sample" not in jax.jit(F.embedding).lower(index, table).as_text()
        np.testing.assert_array_equal(F.embedding(index, table), table[index])


def test_devices_each_gather_by_the_library(rng):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    index, table = jnp.asarray(rng.integers(0, 9, (4, 6))), jnp.asarray(rng.standard_normal((9, 5)))

    def slope(index, table):
        return jax.grad(lambda t: (F.embedding_bag(index, t, mode="mean") ** 2).sum())(table)

    def summed(index, table):
        return jax.lax.psum(slope(index, table), "d")

    # Where types say that all devices have the same table, its gradient is the sum of theirs.
    for check, one in ((True, slope), (False, summed)):
        each = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P(), check_vma=check))
        assert "jnn_sample" in each.lower(index, table).as_text()
        np.testing.assert_allclose(each(index, table), slope(index, table), rtol=1e-11)


@pytest.mark.parametrize("most", [0, resampling._MOST_JOINED])
def test_axes_resampled_as_one_and_one_after_another(most, rng, monkeypatch):
    monkeypatch.setattr(resampling, "_MOST_JOINED", most)

    def resized(x):
        bilinear, bicubic = F.interpolate(x, (9, 4), mode="bilinear"), F.interpolate(x, (3, 11), mode="bicubic")
        return bilinear, bicubic, F.adaptive_avg_pool2d(x, (3, 2)), jax.vmap(lambda x: F.adaptive_avg_pool2d(x, 3))(x)

    def run(x):
        return resized(x), jax.grad(lambda x: sum((y**3).sum() for y in resized(x)))(x)

    x = rng.standard_normal((2, 19, 7, 5))
    same(*_both(run, jnp.asarray(x)), 1e-10)
    # What a weight of zero stands for is not read.
    x[0, 1, 6, 4] = np.inf
    pooled = F.adaptive_avg_pool2d(jnp.asarray(x), (3, 2))
    assert np.isinf(pooled).sum() == 1
    assert not np.isnan(pooled).any()
