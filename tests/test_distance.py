"""Norms, distances and similarities: what the table does not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jnn import functional as F

POWERS = [0, 0.5, 1, 1.5, 2, 3, float("inf")]


@pytest.mark.parametrize("p", POWERS)
def test_pdist_of_equal_rows_has_a_gradient(p):
    x = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 1.0, -1.0]])
    theirs = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.pdist(theirs, p)
    expected.sum().backward()
    y, vjp = jax.vjp(lambda x: F.pdist(x, p), jnp.asarray(x))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    if np.isfinite(p):  # torch gives every largest difference the whole gradient, here they share it
        np.testing.assert_allclose(vjp(jnp.ones_like(y))[0], theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [*POWERS, -2, -float("inf")])
def test_pairwise_distance_at_zero(p):
    a, b = np.array([[1.0, 2.0], [1.0, 3.0]]), np.array([[1.0, 2.0], [1.0, 5.0]])
    theirs = torch.tensor(a, requires_grad=True)
    expected = torch.nn.functional.pairwise_distance(theirs, torch.tensor(b), p, eps=0.0)
    grad = torch.autograd.grad(expected.sum(), theirs)[0].nan_to_num() if p else torch.zeros(2, 2)
    y, vjp = jax.vjp(lambda a: F.pairwise_distance(a, jnp.asarray(b), p, eps=0.0), jnp.asarray(a))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(vjp(jnp.ones_like(y))[0], grad.numpy(), rtol=1e-9)


@pytest.mark.parametrize("p", [float("inf"), -float("inf")])
def test_extremes_of_many_numbers_keep_nan(p, rng):
    x = rng.standard_normal((3, 64))
    x[1, 5] = np.nan
    y = F.pairwise_distance(x, np.zeros_like(x), p, eps=0.0)
    np.testing.assert_allclose(y, torch.linalg.vector_norm(torch.tensor(x), p, 1).numpy(), rtol=1e-12)


def test_second_derivative_at_zero_is_finite():
    hessian = jax.hessian(lambda x: jnp.sum(F.pairwise_distance(x, x * 0, eps=0.0)))(jnp.zeros((1, 2)))
    assert jnp.isfinite(hessian).all()


def test_cosine_similarity_of_zeros(rng):
    a, b = np.stack([np.zeros(4), rng.standard_normal(4)]), rng.standard_normal((2, 4))
    theirs = torch.tensor(a, requires_grad=True)
    expected = torch.nn.functional.cosine_similarity(theirs, torch.tensor(b))
    expected.sum().backward()
    y, vjp = jax.vjp(lambda a: F.cosine_similarity(a, jnp.asarray(b)), jnp.asarray(a))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(vjp(jnp.ones_like(y))[0], theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_dtypes():
    half, single = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.float32)
    assert F.cosine_similarity(half, single).dtype == jnp.float32
    assert F.pairwise_distance(half, half).dtype == jnp.bfloat16
    assert F.pdist(half).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.pdist(jnp.ones((2, 3, 4))), RuntimeError, "pdist: input must be 2D"),
        (lambda: F.pdist(jnp.ones((2, 3), int)), RuntimeError, "pdist: input must be floating point"),
        (lambda: F.pdist(jnp.ones((2, 3)), -1.0), RuntimeError, "pdist: p must not be negative"),
        (lambda: F.pairwise_distance(jnp.ones((2, 3)), jnp.ones((2, 4))), RuntimeError, "x1 and x2 must broadcast to one shape"),
        (lambda: F.cosine_similarity(jnp.ones((2, 3)), jnp.ones((2, 3)), 2), IndexError, r"dim must be in \[-2, 1\]"),
        (lambda: F.cosine_similarity(jnp.ones((2, 3), int), jnp.ones((2, 3), int)), RuntimeError, "x1 or x2 must be floating point"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_pairs():
    assert F.pdist(jnp.ones((1, 3))).shape == (0,)
    np.testing.assert_array_equal(F.pdist(jnp.ones((3, 0))), np.zeros(3))
