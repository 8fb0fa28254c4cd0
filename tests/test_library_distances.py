"""Sums of differences, cosines and pairs by jnn's library for CPUs are what they are defined as, in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn.functional as F
from jnn.kernels import distances
from jnn.kernels.distances import Penalty

from .derivatives import DERIVATIVES, by_both, derivative_is_xlas

pytestmark = pytest.mark.usefixtures("quick_compilation")

PENALTIES = [Penalty("square"), Penalty("square", shift=0.3), Penalty("size"), Penalty("size", shift=1e-2), Penalty("huber", 0.7)]
TYPES = ((np.float64, 1e-11), (np.float32, 1e-4))


def _arrays(rng, dtype, *shapes):
    # Halves, so that some differences are 0 and some at Huber's limit.
    return [jnp.asarray(np.round(4 * rng.standard_normal(shape)) / 2, dtype) for shape in shapes]


def _slopes_of(static, g, wanted):
    def of(function):
        def run(*arrays):
            moved = [x for x, want in zip(arrays, wanted, strict=True) if want]

            def part(*moved):
                given = iter(moved)
                return function(static, *(next(given) if want else x for x, want in zip(arrays, wanted, strict=True)))[0]

            y, pull = jax.vjp(part, *moved)
            return y, *pull(g)

        return run

    return of


@pytest.mark.parametrize(("shape", "axes"), [((5, 1), 1), ((40, 33), 1), ((7, 100), 2), ((3, 5, 7), 2), ((2, 40011), 1)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_differences_are_their_definition(penalty, shape, axes, rng):
    for dtype, rtol in TYPES:
        x, y, g = _arrays(rng, dtype, shape, shape, shape[: len(shape) - axes])
        for wanted in ((True, True), (True, False), (False, True)):
            of = _slopes_of(distances._Sum(penalty, axes), g, wanted)
            by_both(of, distances._summed, distances._summed_as_defined, (x, y), "jnn_differences_backward", rtol)


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (16, 20), (17, 4), (37, 33), (50, 7)])
@pytest.mark.parametrize("penalty", [Penalty("square"), Penalty("size"), Penalty("huber", 0.7), Penalty("count"), Penalty("greatest")])
def test_pairs_are_their_definition(penalty, shape, rng):
    for dtype, rtol in TYPES:
        x, g = _arrays(rng, dtype, shape, (shape[0] * (shape[0] - 1) // 2,))
        by_both(_slopes_of(penalty, g, (True,)), distances._of_pairs, distances._of_pairs_as_defined, (x,), "jnn_pairs_backward", rtol)


@pytest.mark.parametrize("shape", [(3, 1), (40, 33), (2, 7, 100)])
def test_cosines_are_their_definition(shape, rng):
    for dtype, rtol in TYPES:
        x, y = _arrays(rng, dtype, shape, shape)
        x = x.at[0].set(0)
        for eps in (1e-8, 3.0):
            static = distances._Cosine(len(shape) - 1, eps)
            by_both(lambda f, s=static: lambda *a: f(s, *a), distances._cosine, distances._cosine_as_defined, (x, y), "jnn_products", rtol)


FUNCTIONS = {
    "mse_loss": lambda x, w: F.mse_loss(jnp.tile(x * w[None, None], (99, 1, 1)), jnp.tile(x, (99, 1, 1)) ** 2),
    "smooth_l1_loss": lambda x, w: F.smooth_l1_loss(jnp.tile(x * w[None, None], (99, 1, 1)), jnp.tile(x, (99, 1, 1)) ** 2, reduction="sum"),
    "pairwise_distance": lambda x, w: F.pairwise_distance(jnp.tile(x * w[None, None], (99, 1, 1)), jnp.tile(x, (99, 1, 1))),
    "pdist": lambda x, w: F.pdist(x[0] * w[None]),
    "cosine_similarity": lambda x, w: F.cosine_similarity(x * w[None, None], x + w[None, None], -1),
}


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_derivative_is_that_of_xlas(function, name, rng):
    x, w = jnp.asarray(rng.standard_normal((3, 4, 5))), jnp.asarray(rng.standard_normal(5))
    derivative_is_xlas(FUNCTIONS[function], name, x, w)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_come_out_as_torchs(bad, rng):
    x, y = (rng.standard_normal((90, 60)).astype(np.float32) for _ in range(2))
    x[3, 4] = bad
    for run in (
        lambda ns, x, y: ns.mse_loss(x, y),
        lambda ns, x, y: ns.l1_loss(x, y),
        lambda ns, x, y: ns.huber_loss(x, y, delta=0.5),
        lambda ns, x, y: ns.pairwise_distance(x, y),
        lambda ns, x, y: ns.pairwise_distance(x, y, p=1.0),
        lambda ns, x, y: ns.cosine_similarity(x, y),
        lambda ns, x, y: ns.pdist(x),
        lambda ns, x, y: ns.pdist(x, 1.0),
        lambda ns, x, y: ns.pdist(x, 0.0),
        lambda ns, x, y: ns.pdist(x, np.inf),
    ):
        theirs = torch.tensor(x, requires_grad=True)
        expected = run(torch.nn.functional, theirs, torch.tensor(y))
        value, pull = jax.vjp(lambda x: run(F, x, y), jnp.asarray(x))  # noqa: B023
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-4, atol=1e-5)
        expected.sum().backward()
        found, slopes = pull(jnp.ones_like(value))[0], theirs.grad.numpy()
        # Rows of numbers alone; of what is not finite torch has sometimes 0 for NaN.
        rest = np.arange(90) != 3
        np.testing.assert_allclose(found[rest], slopes[rest], rtol=1e-4, atol=1e-5)
