"""Arrays of equal trees as one: the values and derivatives of ``jnp.stack``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnn.kernels.stacking import stack

RNG = np.random.default_rng(0)
TREES = [{"w": jnp.asarray(RNG.standard_normal((2, 3))), "b": jnp.asarray(RNG.standard_normal(3)), "n": jnp.asarray(i)} for i in range(4)]
SMOOTH = [{k: v for k, v in t.items() if k != "n"} for t in TREES]
COEFFICIENTS = {"w": RNG.standard_normal((4, 2, 3)), "b": RNG.standard_normal((4, 3))}


def plain(trees):
    return jax.tree.map(lambda *rows: jnp.stack(rows), *trees)


def curved(fn):
    """A number that depends on every element of the stack in its own, curved way."""
    return lambda trees: sum(jnp.sum(c * jnp.sin(x)) for c, x in zip(*map(jax.tree.leaves, (COEFFICIENTS, fn(trees))), strict=True))


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_values_of_any_dtype():
    same(stack(TREES), plain(TREES))


@pytest.mark.parametrize(
    "derive",
    [
        jax.grad,
        jax.jacfwd,
        lambda fn: jax.jit(jax.grad(fn)),
        lambda fn: lambda trees: jax.vmap(jax.grad(fn))(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), trees)),
        lambda fn: lambda trees: jax.jvp(jax.grad(fn), (trees,), (trees,))[1],
        lambda fn: jax.grad(lambda trees: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(fn)(trees)))),
    ],
    ids=["grad", "jacfwd", "jit", "vmap", "forward over reverse", "reverse over reverse"],
)
def test_derivatives(derive):
    same(derive(curved(stack))(SMOOTH), derive(curved(plain))(SMOOTH))


def test_gradients_are_cut_out_by_kernels_that_all_share():
    program = jax.jit(jax.grad(curved(stack))).lower(SMOOTH).compile().as_text()
    offsets = [line for line in program.splitlines() if " slice(" in line and "f64" in line]
    assert "dynamic-slice" in program
    assert not offsets
