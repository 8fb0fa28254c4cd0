"""Norms and softmax by jnn's library for CPUs: every form is what it is defined as, in every derivative."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn.functional as F
from jnn.kernels import activations, glu, normalization, softmax
from jnn.kernels.normalization import Layout
from jnn.kernels.platform import lowering
from jnn.kernels.sums import sum_last

from .derivatives import DERIVATIVES, by_both, derivative_is_xlas, same
from .oracle import quick_jit

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The first axes of groups, members and places, options, and the shape.
NORMS = {
    "rows": (1, 1, 2, {}, (40, 33)),
    "rows of less than a vector": (1, 1, 2, {}, (7, 5)),
    "many rows of less than a vector": (1, 1, 2, {}, (9003, 7)),
    "mean squares of less than a vector": (1, 1, 2, {"centered": False}, (35, 6)),
    "rows of one": (1, 1, 2, {"eps": 1.0}, (4, 1)),
    "rows of more than a chunk": (1, 1, 2, {}, (2, 9001)),
    "many rows": (2, 2, 3, {}, (50, 41, 20)),
    "one row": (0, 0, 2, {}, (3, 50)),
    "mean squares": (1, 1, 2, {"centered": False}, (9, 70)),
    "groups": (1, 2, 3, {}, (3, 2, 4, 5, 7)),
    "groups of single numbers": (1, 2, 3, {}, (5, 3, 4)),
    "many groups of single numbers": (1, 2, 3, {}, (30, 3, 4)),
    "groups of few places": (1, 2, 3, {}, (41, 3, 2, 3)),
    "groups of many places": (1, 2, 3, {}, (2, 2, 3, 4099)),
    "instances": (1, 2, 2, {}, (3, 4, 33)),
    "instances of few places": (1, 2, 2, {}, (30, 11, 5)),
    "a batch": (1, 2, 2, {"across": True}, (5, 3, 4, 4)),
    "a batch of odd places": (1, 2, 2, {"across": True}, (9, 5, 49)),
    "a batch of few places": (1, 2, 2, {"across": True}, (70, 13, 3, 3)),
    "a batch of columns": (1, 2, 2, {"across": True}, (100, 67)),
    "a batch of one": (1, 2, 2, {"across": True}, (1, 3, 200)),
}


@pytest.mark.parametrize(("groups", "members", "places", "options", "shape"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norms_are_their_definition(groups, members, places, options, shape, mean, rng):
    layout = Layout(groups, members, places, **{"eps": 1e-5, **options})
    for dtype, rtol in ((np.float64, 1e-10), (np.float32, 5e-5)):
        x, g = (jnp.asarray(rng.standard_normal(shape) + at, dtype) for at in (mean, 0))
        # What is not centred has no bias.
        w, b = (jnp.asarray(rng.standard_normal(shape[groups:places]) * factor, dtype) for factor in (1, layout.centered))

        def of(function, g=g):
            def run(*arrays):
                y, pull, rest = jax.vjp(lambda *a: ((out := function(layout, *a))[0], out[1:]), *arrays, has_aux=True)
                return y, *pull(g), rest[:: 1 if layout.centered else -2]

            return run

        by_both(of, normalization._normalized, normalization._as_defined, (x, w, b), "jnn_norm_backward", rtol)


def _slopes_of(static, g):
    def of(function):
        def run(x, *rest):
            y, pull = jax.vjp(lambda x: function(static, x, *rest)[0], x)
            return y, *pull(g)

        return run

    return of


@pytest.mark.parametrize("size", [1, 5, 16, 100, 1031])
@pytest.mark.parametrize(("log", "negated"), [(False, False), (True, False), (False, True)])
def test_softmax_is_its_definition(log, negated, size, rng):
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        x, g = (jnp.asarray(3 * rng.standard_normal((3, 7, size)), dtype) for _ in range(2))

        for axis in range(3):
            of = _slopes_of(softmax.Form(log, axis, negated), g)
            by_both(of, softmax._along, softmax._along_as_defined, (x,), "jnn_softmax_backward", rtol)
            rest = x.shape[:axis] + x.shape[axis + 1 :]
            index = jnp.asarray(rng.integers(0, x.shape[axis], rest), jnp.int32)
            of = _slopes_of(axis, g.reshape(-1)[: index.size].reshape(rest))
            by_both(of, softmax._at, softmax._at_as_defined, (x, index), "jnn_log_softmax_at_backward", rtol)


@pytest.mark.parametrize(
    ("shape", "axes"), [((5000, 3), 1), ((90, 7, 16), 2), ((3, 20011), 1), ((2, 3, 40, 50), 4), ((70001,), 1), ((9000, 2), 0)]
)
def test_sums_are_their_definition(shape, axes, rng):
    for dtype, rtol in ((np.float64, 1e-13), (np.float32, 1e-6)):
        x = jnp.asarray(rng.standard_normal(shape), dtype)
        call = jax.jit(lambda x: sum_last(x, axes)).lower(x)
        assert ("jnn_sum" in call.as_text()) == (axes > 0)
        expected = np.asarray(x, np.float64).sum(tuple(range(x.ndim - axes, x.ndim)))
        # Rounding grows with the numbers that are added one to another, not with what their sum happens to be.
        np.testing.assert_allclose(call.compile()(x), expected, rtol=rtol, atol=rtol * np.sqrt(x.size))


FUNCTIONS = {
    "sum": lambda x, w: sum_last(jnp.tile(x * w[None, None], (1, 1, 300)), 2),
    "layer norm": lambda x, w: F.layer_norm(x, (5,), w, w),
    "group norm": lambda x, w: F.group_norm(x, 2, w[:4], w[:4]),
    "batch norm": lambda x, w: F.batch_norm(x, None, None, w[:4], w[:4], True),
    "softmax": lambda x, w: F.softmax(x * w[None, None], -1),
    "log softmax": lambda x, w: F.log_softmax(x * w[None, None], -1),
    "softmax of columns": lambda x, w: F.softmax(x * w[None, None], 1),
    "log softmax of columns": lambda x, w: F.log_softmax(x * w[None, None], 0),
    "cross entropy of images": lambda x, w: F.cross_entropy(
        x * w[None, None], jnp.arange(x.size // 4).reshape(-1, 5) % 4, reduction="none"
    ),
    "silu": lambda x, w: F.silu(jnp.tile(x * w[None, None], (1, 99, 1))).sum(1),
    "softplus": lambda x, w: F.softplus(jnp.tile(x * w[None, None], (1, 99, 1)), 2.0, 3.0).sum(1),
    "cross entropy": lambda x, w: F.cross_entropy((x * w[None, None]).reshape(-1, 5), jnp.arange(x.size // 5) % 5, reduction="none"),
}


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_derivative_is_that_of_xlas(function, name, rng):
    x, w = jnp.asarray(rng.standard_normal((3, 4, 5))), jnp.asarray(rng.standard_normal(5))
    derivative_is_xlas(FUNCTIONS[function], name, x, w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_come_out_as_torchs(bad, rng):
    x = rng.standard_normal((4, 4, 20)).astype(np.float32)
    x[1, 2, 17] = bad
    theirs = torch.nn.functional
    for mine, other in (
        (F.layer_norm(x, (20,)), theirs.layer_norm(torch.tensor(x), (20,))),
        (F.rms_norm(x, (20,)), theirs.rms_norm(torch.tensor(x), (20,))),
        (F.group_norm(x, 2), theirs.group_norm(torch.tensor(x), 2)),
        (F.batch_norm(x, None, None, training=True), theirs.batch_norm(torch.tensor(x), None, None, training=True)),
        (F.batch_norm(x[..., :3], None, None, training=True), theirs.batch_norm(torch.tensor(x[..., :3]), None, None, training=True)),
        *((F.softmax(x, axis), theirs.softmax(torch.tensor(x), axis)) for axis in range(3)),
        *((F.log_softmax(x, axis), theirs.log_softmax(torch.tensor(x), axis)) for axis in range(3)),
    ):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-4, atol=1e-5)
    barred = np.full((2, 20), -np.inf, np.float32)
    assert all(np.isnan(F.softmax(barred, axis)).all() for axis in range(2))


def test_a_mean_far_from_zero_costs_no_more_than_its_own_rounding(rng):
    x = (1e4 + rng.standard_normal((64, 48, 4))).astype(np.float32)
    for run in (
        lambda x: F.layer_norm(x, (48, 4)),
        lambda x: F.group_norm(x, 3),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(x[..., 0], None, None, training=True),
    ):
        np.testing.assert_allclose(run(x), run(x.astype(np.float64)), atol=4e-3)


def test_large_results_are_written_past_the_cache(rng):
    x = jnp.asarray(rng.standard_normal((1030, 4096)), jnp.float32)
    for run in (
        lambda x: F.layer_norm(x, (4096,)),
        lambda x: F.log_softmax(x, -1),
        lambda x: F.log_softmax(x, 0),
        lambda x: F.batch_norm(x, None, None, training=True),
    ):
        y, pull = jax.vjp(run, x)
        with lowering(native=False, library=False):
            jax.clear_caches()
            expected, slopes = jax.vjp(run, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(*(f(y)[0] for f in (pull, slopes)), rtol=1e-3, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads():
    script = """
import jax, jax.numpy as jnp, numpy as np, hashlib, jnn.functional as F
x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 96, 60)), jnp.float32)
w, found = jnp.ones(96), []
for run in (
    lambda x, w: F.layer_norm(x, (60,), w[:60], w[:60]),
    lambda x, w: F.group_norm(x, 4, w, w),
    lambda x, w: F.batch_norm(x, None, None, w, w, True),
    lambda x, w: F.batch_norm(x[..., :3], None, None, w, w, True),
    lambda x, w: F.softmax(x * w[None, None, :60], -1),
):
    y, pull = jax.vjp(run, x, w)
    found += [y, *pull(y)]
print(hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in found)).hexdigest())
"""
    found = {
        subprocess.run([sys.executable, "-c", script], env=os.environ | {"NPROC": n}, check=True, capture_output=True).stdout for n in "12"
    }
    assert len(found) == 1


def test_devices_each_normalize_by_the_library(rng):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jnp.asarray(rng.standard_normal((4, 3, 10))), jnp.asarray(rng.standard_normal(10))

    def slopes(x, w):
        y, pull = jax.vjp(lambda x: F.log_softmax(F.layer_norm(x, (10,), w, w), -1), x)
        return y, *pull(y)

    for check in (True, False):
        each = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P("d"), check_vma=check))
        assert all(target in each.lower(x, w).as_text() for target in ("jnn_norm_backward", "jnn_softmax_backward"))
        same(each(x, w), slopes(x, w), 1e-11)


@pytest.mark.parametrize(("shape", "axis"), [((3, 2), 1), ((4, 6, 50), 1), ((5, 34), 1), ((2, 20000), 1), ((40000,), 0)])
def test_gated_linear_units_are_their_definition(shape, axis, rng):
    halves = glu._Halves(axis, math.prod(shape[axis:]) // 2)
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        x = jnp.asarray(3 * rng.standard_normal(shape), dtype)
        g = jnp.asarray(rng.standard_normal([n // 2 if i == axis else n for i, n in enumerate(shape)]), dtype)
        by_both(_slopes_of(halves, g), glu._glu, glu._as_defined, (x,), "jnn_glu_backward", rtol)


@pytest.mark.parametrize(
    ("mode", "value"), [("reflect", None), ("replicate", None), ("circular", None), ("constant", None), ("constant", 1.5)]
)
@pytest.mark.parametrize(
    ("shape", "pad"),
    [
        ((2, 3, 5), (2, 3)),
        ((3, 40), (-1, 4)),
        ((2, 3, 6, 37), (3, 0, -2, 4)),
        ((2, 3, 4, 4), (-2, -1, 1, 1)),
        ((2, 4, 5, 6), (1, 2, 0, 3, 2, 1)),
    ],
)
def test_padding_is_its_definition(mode, value, shape, pad, rng):
    _compare_padding(lambda x: F.pad(x, pad, mode, value), shape, rng)


@pytest.mark.parametrize("pad", [(-5, 2), (2, -5), (1, 1, -4, 3), (9, 30)])
def test_padding_alone_is_filled_in(pad, rng):
    _compare_padding(lambda x: F.pad(x, pad, value=-2.0), (4, 5), rng)


def _compare_padding(padded, shape, rng):
    def everything(x):
        y, pull = jax.vjp(padded, x)
        return y, *pull(y), jax.jvp(padded, (x,), (2 * x,))[1], jax.vmap(padded)(jnp.stack([x, 2 * x]))

    for dtype, rtol in ((np.float64, 1e-15), (np.float32, 1e-6)):
        x = jnp.asarray(rng.standard_normal(shape), dtype)
        call = jax.jit(everything).lower(x)
        assert all(f"@{target}(" in call.as_text() for target in ("jnn_extended", "jnn_extended_gradient"))
        found = call.compile()(x)
        jax.clear_caches()
        with lowering(native=False, library=False):
            expected = quick_jit(lambda x: everything(x))(x)
        # Gradients are sums of a few numbers, in another order.
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_padding_by_minus_zero():
    assert np.signbit(F.pad(jnp.ones(3), (1, 0), value=-0.0)[0])


@pytest.mark.parametrize("scale", [(1.0, 20.0), (2.5, 1.0), (-1.0, math.inf)])
@pytest.mark.parametrize("shape", [(3,), (5, 40), (2, 9001)])
def test_softplus_is_its_definition(shape, scale, rng):
    for dtype, rtol in ((np.float64, 1e-14), (np.float32, 1e-6)):
        x, g = (jnp.asarray(8 * rng.standard_normal(shape), dtype) for _ in range(2))
        by_both(
            _slopes_of(activations._Scale(*scale), g), activations._scaled, activations._as_defined, (x,), "jnn_softplus_backward", rtol
        )


@pytest.mark.parametrize("shape", [(3,), (2, 9001)])
def test_silu_is_its_definition(shape, rng):
    for dtype, rtol in ((np.float64, 1e-14), (np.float32, 1e-6)):
        x, g = (jnp.asarray(8 * rng.standard_normal(shape), dtype) for _ in range(2))
        by_both(_slopes_of(None, g), activations._silu, activations._silu_as_defined, (x,), "jnn_silu_backward", rtol)


def test_softplus_of_any_number():
    x = jnp.concatenate([jnp.linspace(-80, 80, 20001), jnp.logspace(-30, 30, 2001), -jnp.logspace(-30, 1, 2001)])
    for dtype, rtol in ((np.float64, 1e-15), (np.float32, 4e-7)):
        found = F.softplus(x.astype(dtype), threshold=math.inf)
        np.testing.assert_allclose(found, jnp.logaddexp(x.astype(dtype).astype(np.float64), 0), rtol=rtol)
    strange = jnp.tile(jnp.asarray([np.nan, np.inf, -np.inf], np.float32), 2000)
    np.testing.assert_array_equal(F.softplus(strange)[:3], [np.nan, np.inf, 0])
    np.testing.assert_array_equal(F.logsigmoid(strange)[:3], [np.nan, 0, -np.inf])
