"""Grouped matrix products against a loop over the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jnn import functional as F

ENDS = np.array([2, 2, 5])  # one group is empty, and the sixth place belongs to none
SLICES = [slice(0, 2), slice(2, 2), slice(2, 5)]


def by_rows(a, b):
    return jnp.concatenate([*(a[s] @ b[g] for g, s in enumerate(SLICES)), jnp.zeros((1, b.shape[2]))])


def by_columns(a, b):
    return jnp.concatenate([*(a[g] @ b[:, s] for g, s in enumerate(SLICES)), jnp.zeros((a.shape[1], 1))], 1)


def by_sums(a, b):
    return jnp.stack([a[:, s] @ b[s] for s in SLICES])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((6, 4), (3, 4, 7), by_rows), ((3, 5, 4), (4, 6), by_columns), ((5, 6), (6, 4), by_sums), ((3, 5, 6), (3, 6, 4), jnp.matmul)],
    ids=["rows", "columns", "sums", "batches"],
)
def test_values_derivatives_and_batches(a, b, expected, rng):
    a, b = jnp.asarray(rng.standard_normal(a)), jnp.asarray(rng.standard_normal(b))
    offs = None if expected is jnp.matmul else jnp.asarray(ENDS)

    def run(a, b):
        return F.grouped_mm(a, b, offs=offs)

    np.testing.assert_allclose(run(a, b), expected(a, b), rtol=1e-12)
    for mine, theirs in zip(*(jax.grad(lambda a, b, f=f: jnp.sum(f(a, b) ** 2), (0, 1))(a, b) for f in (run, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(run, (-1, None))(jnp.stack([a, 2 * a], -1), b)[1], 2 * expected(a, b), rtol=1e-12)
    half = run(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, float), expected(a, b), rtol=0.05, atol=0.1)
    assert F.grouped_mm(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), offs=offs, out_dtype=jnp.float32).dtype == jnp.float32


def test_an_infinity_stays_in_its_group():
    a, b = jnp.ones((6, 4)), jnp.ones((3, 4, 7)).at[1].set(jnp.inf)
    assert jnp.isfinite(F.grouped_mm(a, b, offs=jnp.asarray(ENDS))).all()


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ((2, 3), (3, 4), {}, "offs must be given for matrices"),
        ((2, 2, 3), (2, 3, 4), {"offs": ENDS}, "offs must be given for matrices, and for nothing else"),
        ((2, 2, 3), (3, 3, 4), {}, "the numbers of groups must be equal"),
        ((6, 3), (2, 3, 4), {"offs": ENDS}, "the numbers of groups must be equal"),
        ((6, 3), (3, 4, 4), {"offs": ENDS}, "the inner dimensions must be equal"),
        ((6, 3), (3, 3, 4), {"offs": ENDS * 1.0}, "offs must be a vector of integers"),
        ((6, 3), (3, 3, 4), {"offs": ENDS, "bias": np.ones(4)}, "a bias is not supported"),
        ((3,), (3, 4), {}, "mat_a must be 2D or 3D"),
    ],
)
def test_refusals(a, b, options, message):
    with pytest.raises(RuntimeError, match=f"grouped_mm: {message}"):
        F.grouped_mm(jnp.ones(a), jnp.ones(b), **options)
