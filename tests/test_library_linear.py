"""Affine maps by jnn's library for CPUs are what they are defined as, in every derivative."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn.functional as F
from jnn.kernels import linear
from jnn.kernels.platform import lowering

from .derivatives import same
from .oracle import quick_jit

# Rows, inputs and outputs.
SIZES = {
    "few": (5, 3, 2),
    "of one": (6, 1, 1),
    "less than a vector": (9, 7, 11),
    "more than a vector": (17, 19, 21),
    "whole panels": (28, 32, 64),
    "odd panels": (131, 47, 75),
    "more than a block of terms": (130, 1031, 70),
    "few sums of more than a block of terms": (37, 1303, 21),
    "few sums of many rows": (2100, 29, 17),
    "many rows": (1100, 13, 40),
    "many outputs": (8, 16, 523),
    "by both threads": (150, 130, 140),
    "past the cache": (5, 1100, 1030),
    "few outputs of many rows": (533, 270, 9),
    "few outputs of whole panels": (300, 64, 16),
}


def _arrays(rng, sizes, dtype=np.float64):
    rows, inputs, outputs = sizes
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_their_definition(sizes, biased, rng, monkeypatch):
    monkeypatch.setattr(linear, "_FEW_OUTPUTS", 0)

    def of(function, g):
        def run(*arrays):
            (y,), pull = jax.vjp(functools.partial(function, None), *arrays)
            return y, *pull((g,))

        return run

    # Sums of up to 1,100 terms in another order.
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 2e-5)):
        arrays = _arrays(rng, sizes, dtype)[: 2 + biased]
        g = jnp.asarray(rng.standard_normal((sizes[0], sizes[2])), dtype)

        call = jax.jit(of(linear._linear, g)).lower(*arrays)
        assert all(target in call.as_text() for target in ("@jnn_linear(", "@jnn_linear_by_input", "@jnn_linear_by_weight"))
        same(call.compile()(*arrays), quick_jit(of(linear._definition, g))(*arrays), rtol)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_gradients_that_are_wanted_are_computed(wanted, rng):
    arrays = _arrays(rng, (9, 4, 12))
    gradient = jax.jit(jax.grad(lambda *a: (F.linear(*a) ** 3).sum(), wanted)).lower(*arrays)
    assert ("jnn_linear_by_input" in gradient.as_text(), "jnn_linear_by_weight" in gradient.as_text()) == (0 in wanted, 1 in wanted)
    x, w, b = map(np.asarray, arrays)
    g = 3 * (x @ w.T + b) ** 2
    same(gradient.compile()(*arrays), [(g @ w, g.T @ x, g.sum(0))[i] for i in wanted], 1e-12)


@pytest.mark.parametrize(
    ("rows", "outputs", "by_library"),
    [
        (1, 40, "by_weight"),
        (3, 40, "forward by_weight"),
        (5, 40, "forward by_input by_weight"),
        (20, 8, "by_weight"),
        (20, 20, "by_input by_weight"),
    ],
)
def test_few_rows_and_few_or_uneven_outputs_are_xlas(rows, outputs, by_library, rng, monkeypatch):
    monkeypatch.setattr(linear, "_MANY", 600)
    arrays = _arrays(rng, (rows, 30, outputs))
    gradient = jax.jit(jax.grad(_cubes, (0, 1, 2))).lower(*arrays)
    targets = {"@jnn_linear(": "forward", "@jnn_linear_by_input(": "by_input", "@jnn_linear_by_weight(": "by_weight"}
    assert [name for target, name in targets.items() if target in gradient.as_text()] == by_library.split()
    x, w, b = map(np.asarray, arrays)
    g = 3 * (x @ w.T + b) ** 2
    same(gradient.compile()(*arrays), (g @ w, g.T @ x, g.sum(0)), 1e-12)


def test_runs_where_functions_are_not_compiled(rng):
    arrays = _arrays(rng, (6, 3, 12))
    with jax.disable_jit():
        found = jax.value_and_grad(_cubes)(*arrays)
    same(found, jax.jit(jax.value_and_grad(_cubes))(*arrays), 1e-12)


def _cubes(*arrays):
    return (F.linear(*arrays) ** 3).sum()


DERIVATIVES = {
    "forward": lambda *a: jax.jvp(F.linear, a, a),
    "twice": lambda *a: jax.jvp(jax.grad(_cubes, (0, 1, 2)), a, a),
    "reverse twice": lambda *a: jax.grad(lambda *a: (jax.grad(_cubes, 1)(*a) ** 2).sum(), (0, 1, 2))(*a),
    "by sample": lambda x, w, b: jax.vmap(jax.grad(_cubes, (0, 1, 2)), (0, None, None))(jnp.stack([x, 2 * x]), w, b),
    "of several weights": lambda x, w, b: jax.vmap(jax.grad(_cubes, (0, 1, 2)), (None, 0, 0))(x, jnp.stack([w, 2 * w]), jnp.stack([b, -b])),
    "in loops, computed again": lambda x, w, b: jax.grad(
        lambda *a: jax.lax.scan(lambda c, _: (c + jax.checkpoint(_cubes)(a[0] + c, *a[1:]), None), 0.0, None, 2)[0], (0, 1, 2)
    )(x, w, b),
    "more dimensions": lambda x, w, b: jax.value_and_grad(_cubes, (0, 1, 2))(jnp.stack([x, x + 1]), w, b),
    "one dimension": lambda x, w, b: jax.value_and_grad(_cubes, (0, 1, 2))(x[0], w, b),
    "a weight of one dimension": lambda x, w, b: jax.value_and_grad(_cubes, (0, 1, 2))(x, w[0], b[0]),
    "a bias of one number": lambda x, w, b: jax.value_and_grad(_cubes, (0, 1, 2))(x, w, b[:1]),
    "a bias of more dimensions": lambda x, w, b: jax.value_and_grad(_cubes, (0, 1, 2))(x, w, jnp.outer(x[:, 0], b)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_xlas(name, rng, quick_compilation):
    arrays = _arrays(rng, (7, 5, 3))

    def run():
        jax.clear_caches()
        return jax.jit(DERIVATIVES[name])(*arrays)

    found = run()
    with lowering(native=True):
        same(found, run(), 1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_their_rows(bad, rng):
    x, w, b = _arrays(rng, (9, 40, 21), np.float32)
    y = F.linear(x.at[3, 39].set(bad), w, b)
    assert not np.isfinite(y[3]).any()
    assert np.isfinite(np.delete(y, 3, 0)).all()
    y = F.linear(x, w.at[20, 1].set(bad), b)
    assert not np.isfinite(y[:, 20]).any()
    assert np.isfinite(y[:, :20]).all()


@pytest.mark.parametrize(
    "shapes", [((0,), (3, 0)), ((2, 0), (0,)), ((2, 0), (3, 0)), ((0, 4), (3, 4)), ((2, 4), (0, 4)), ((2, 0, 5), (3, 5))]
)
def test_without_elements_sums_are_zero(shapes):
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    tensors = [torch.ones(shape, requires_grad=True) for shape in shapes]
    expected = torch.nn.functional.linear(*tensors)
    expected.sum().backward()
    y, pull = jax.vjp(F.linear, x, w)
    np.testing.assert_array_equal(y, expected.detach())
    for slope, tensor in zip(pull(jnp.ones_like(y)), tensors, strict=True):
        np.testing.assert_array_equal(slope, tensor.grad)
