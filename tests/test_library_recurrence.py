"""Recurrent layers by the library of kernels, against the loop of XLA's that defines them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jnn.kernels.platform import lowering
from jnn.kernels.recurrence import CELLS, recurrence

from .oracle import quick_jit

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODES = {mode: (mode, False) for mode in CELLS} | {"projected": ("LSTM", True)}
# Steps, batch, input, hidden size: less than a vector, no whole ones, more rows than a tile, more terms than are summed at a time.
SIZES = [(1, 1, 1, 2), (5, 3, 7, 5), (4, 17, 33, 40), (300, 2, 3, 16), (2, 33, 600, 70)]


def layer(mode, projected, sizes, masked, biased=True, dtype="float64"):
    """A function of a layer's arrays, and the arrays."""
    rng = np.random.default_rng(1)
    steps, batch, width, hidden = sizes
    gates, output = CELLS[mode].gates * hidden, max(1, hidden // 3) if projected else hidden
    shapes = {"x": (steps, batch, width), "w": (gates, width), "u": (gates, output), "h": (batch, output), "c": (batch, hidden)}
    shapes |= {"b": (gates,), "d": (gates,), "p": (output, hidden)}
    arrays = {name: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), dtype) for name, shape in shapes.items()}
    valid = jnp.arange(steps)[:, None] < jnp.asarray(rng.integers(0, steps + 1, batch))[None] if masked else None

    def run(a, reverse=masked):
        state = (a["h"], a["c"]) if mode == "LSTM" else (a["h"],)
        biases = (a["b"], a["d"]) if biased else None
        y, final = recurrence(mode, a["x"], (a["w"], a["u"]), biases, state, a["p"] if projected else None, valid, reverse)
        return y, *final

    return run, arrays


def both(function, *arguments):
    """What a function gives by the library and by definition."""
    found = []
    for by_library in (True, False):
        jax.clear_caches()
        with lowering(native=False, library=by_library):
            lowered = quick_jit(function).lower(*arguments)
            assert ("jnn_recurrence" in lowered.as_text()) == by_library
            found.append(lowered.compile()(*arguments))
    return found


def check(function, *arguments, rtol=1e-10, atol=1e-12):
    for a, b in zip(*map(jax.tree.leaves, both(function, *arguments)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def cubed(run):
    return lambda a: sum((y**3).sum() for y in run(a))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked, reversed"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients(mode, sizes, masked):
    run, arrays = layer(*MODES[mode], sizes, masked)
    check(lambda a: (run(a), jax.grad(cubed(run))(a)), arrays)


@pytest.mark.parametrize("mode", MODES)
def test_single_precision(mode):
    run, arrays = layer(*MODES[mode], (6, 9, 20, 37), True, dtype="float32")
    check(lambda a: (run(a), jax.grad(cubed(run))(a)), arrays, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_without_biases(mode):
    run, arrays = layer(*MODES[mode], (3, 4, 5, 6), False, biased=False)
    check(lambda a: (run(a), jax.grad(cubed(run))(a)), arrays)


@pytest.mark.parametrize("names", ["x", "wubd"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_by_some_of_the_arrays(mode, names):
    run, arrays = layer(*MODES[mode], (3, 4, 5, 6), False)
    check(lambda a, rest: jax.grad(lambda a: cubed(run)(rest | a))(a), {name: arrays[name] for name in names}, arrays)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked, reversed"])
@pytest.mark.parametrize("mode", MODES)
def test_other_derivatives(mode, masked):
    run, arrays = layer(*MODES[mode], (3, 2, 4, 5), masked)
    moved = jax.tree.map(jnp.sin, arrays)
    slopes = jax.grad(cubed(run))
    of_slopes = jax.grad(lambda a: sum((jnp.sin(s)).sum() for s in slopes(a).values()))
    check(lambda a, t: (jax.jvp(run, (a,), (t,)), jax.jvp(slopes, (a,), (t,)), of_slopes(a)), arrays, moved)


@pytest.mark.parametrize("mode", MODES)
def test_under_transformations(mode):
    run, arrays = layer(*MODES[mode], (3, 2, 4, 5), True)
    loss = cubed(run)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x.at[0].multiply(2)]), arrays)

    def in_a_loop(a):
        return jax.lax.scan(lambda total, x: (total + loss(a | {"x": x}), None), 0.0, jnp.stack([a["x"], 2 * a["x"]]))[0]

    check(lambda a: (in_a_loop(a), jax.grad(jax.checkpoint(loss))(a)), arrays)
    for of_each in (run, jax.grad(loss)):
        with lowering(native=False, library=True):
            found = quick_jit(jax.vmap(of_each))(stacked)
        with lowering(native=False):
            singles = [quick_jit(lambda a, f=of_each: f(a))(jax.tree.map(lambda x, i=i: x[i], stacked)) for i in (0, 1)]
        for a, *b in zip(*map(jax.tree.leaves, (found, *singles)), strict=True):
            np.testing.assert_allclose(a, jnp.stack(b), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("check_vma", [False, True])
def test_under_shard_map(check_vma):
    run, arrays = layer("LSTM", False, (3, 8, 4, 5), False)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    specs = {name: P(None, "d") if name == "x" else P("d") if name in "hc" else P() for name in arrays}

    def slopes(a):
        found = jax.grad(cubed(run))(a)
        return found if check_vma else {name: jax.lax.psum(x, "d") if specs[name] == P() else x for name, x in found.items()}

    mapped = jax.shard_map(slopes, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=check_vma)
    check(mapped, arrays)
    found, whole = mapped(arrays), jax.grad(cubed(run))(arrays)
    for name in arrays:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_no_number_stays_what_it_is(mode, bad):
    run, arrays = layer(*MODES[mode], (3, 4, 5, 6), False)
    arrays["x"] = arrays["x"].at[1, 2, 3].set(bad)
    check(run, arrays)


def test_large_drives_saturate():
    run, arrays = layer("LSTM", False, (3, 4, 5, 6), False)
    check(lambda a: (run(a), jax.grad(cubed(run))(a)), arrays | {"x": 1e5 * arrays["x"]})


@pytest.mark.parametrize("empty", [(3, 0, 4, 5), (3, 2, 0, 5)], ids=str)
def test_nothing_is_left_to_the_definition(empty):
    run, arrays = layer("GRU", False, (3, 2, 4, 5), False)
    sizes = dict(zip(("T", "N", "I", "H"), empty, strict=True))
    arrays |= {"x": jnp.zeros((3, sizes["N"], sizes["I"])), "h": jnp.zeros((sizes["N"], 5)), "w": jnp.zeros((15, sizes["I"]))}
    with lowering(native=False, library=True):
        assert run(arrays)[0].shape == (3, sizes["N"], 5)
        assert "jnn_recurrence" not in jax.jit(run).lower(arrays).as_text()


def test_what_is_not_valid_reaches_nothing():
    run, arrays = layer("LSTM", False, (6, 4, 5, 6), True)
    again = functools.partial(run, reverse=False)
    clean, dirty = (jax.grad(cubed(again))(arrays | {"x": x}) for x in (arrays["x"], arrays["x"].at[5].set(1e300)))
    valid = np.asarray(again(arrays)[0][5]).any(-1)
    assert not valid.all()
    np.testing.assert_array_equal(clean["x"][5][~valid], 0)
    np.testing.assert_array_equal(dirty["x"][5][~valid], 0)
