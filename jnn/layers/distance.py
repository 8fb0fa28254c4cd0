"""Norms, distances and similarities, with the gradient 0 where a length is 0."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, config, layer
from ..kernels import distances

Array = jax.Array

# What is added of the differences for a norm of this degree.
_PENALTIES: dict[float, str] = {1: "size", 2: "square"}
_PENALTIES_OF_PAIRS = _PENALTIES | {0: "count", math.inf: "greatest"}


def vector_norm(x: Array, p: float, axis: int | tuple[int, ...] | None, keepdims: bool = False) -> Array:
    """``(sum |x|^p)^(1/p)`` over ``axis``; for ``p`` infinite the largest (or smallest) ``|x|``, for 0 the count of non-zeros.

    The gradient is 0 where the norm is: both roots and powers are taken of 1 there, and the result put back to its limit.
    """
    if p == 0:
        return jnp.sum(x != 0, axis, keepdims=keepdims).astype(x.real.dtype)
    if p == 2:
        square = jnp.sum(jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x), axis, keepdims=keepdims)
        return distances.root(square)
    size = distances.size(x)
    if p == 1:
        return jnp.sum(size, axis, keepdims=keepdims)
    if math.isinf(p):
        # XLA:CPU's maxima and minima of more than a few numbers lose NaN.
        ordered = size == size
        nan = jnp.sum(jnp.where(ordered, 0, size), axis, keepdims=keepdims)
        extreme = (jnp.max if p > 0 else jnp.min)(jnp.where(ordered, size, 0), axis, keepdims=keepdims)
        return jnp.where(nan == nan, extreme, nan)
    at_zero = 0 if p > 0 else jnp.inf
    total = jnp.sum(jnp.where(size == 0, at_zero, jnp.where(size == 0, 1, size) ** p), axis, keepdims=keepdims)
    flat = (total == 0) | jnp.isinf(total)
    return jnp.where(flat, total if p > 0 else 1 / total, jnp.where(flat, 1, total) ** (1 / p))


def _length(p: float, total: Array) -> Array:
    """The norm of a sum of penalties."""
    return distances.root(total) if p == 2 else total


def _common(who: str, **arrays: Array) -> tuple[Any, list[Array]]:
    """The arrays in one shape and in the dtype that sums are taken in, and the dtype of the result."""
    values = [*arrays.values()]
    dtype = jnp.result_type(*values)
    try:
        shape = jnp.broadcast_shapes(*(v.shape for v in values))
    except ValueError:
        checks.fail(who, f"{' and '.join(arrays)} must broadcast to one shape", RuntimeError, **arrays)
    return dtype, [jnp.broadcast_to(v.astype(dtypes.accumulator(dtype)), shape) for v in values]


@function
def pairwise_distance(x1: Array, x2: Array, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Array:
    """``||x1 - x2 + eps||_p`` over the last dimension.

    Shape: x1 and x2 (*, D), broadcast to one shape; output (*), or (*, 1) with ``keepdim``.

    Args:
        p: the degree of the norm.
        eps: added to each difference, so that equal vectors have a distance and a gradient.
        keepdim: keep the last dimension, as 1.

    Raises:
        RuntimeError: the shapes do not broadcast.
    """
    dtype, (a, b) = _common("pairwise_distance", x1=x1, x2=x2)
    if p in _PENALTIES and x1.shape == x2.shape and a.ndim and not jnp.iscomplexobj(a):
        total = _length(p, distances.summed(distances.Penalty(_PENALTIES[p], shift=eps), 1, a, b))
        return (total[..., None] if keepdim else total).astype(dtype)
    difference = a - b + eps
    return vector_norm(difference, p, -1 if difference.ndim else None, keepdim).astype(dtype)


@function
def cosine_similarity(x1: Array, x2: Array, dim: int = 1, eps: float = 1e-8) -> Array:
    """``x1 . x2 / (max(||x1||, eps) max(||x2||, eps))`` over the dimension ``dim``.

    Shape: x1 and x2 broadcast to one shape; output that shape without ``dim``.

    Args:
        dim: the dimension of the vectors.
        eps: the least length that is divided by.

    Raises:
        RuntimeError: the shapes do not broadcast, or neither input is floating point.
        IndexError: there is no such dimension.
    """
    checks.floating("cosine_similarity", "x1 or x2", jnp.zeros((), jnp.result_type(x1, x2)))
    dtype, (a, b) = _common("cosine_similarity", x1=x1, x2=x2)
    axis = checks.dim("cosine_similarity", dim, a.ndim) if a.ndim else None
    return distances.cosine(a, b, axis, eps).astype(dtype)


@function
def pdist(input: Array, p: float = 2.0) -> Array:
    """``||x_i - x_j||_p`` for every pair of rows i < j, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Shape: input (N, M), output (N (N - 1) / 2,).

    Args:
        p: the degree of the norm, from 0 to infinity.

    Raises:
        RuntimeError: the input is not a floating point matrix, or ``p`` is negative.
    """
    checks.rank("pdist", input, (2,))
    checks.floating("pdist", "input", input)
    checks.require(p >= 0, "pdist", "p must not be negative", RuntimeError, p=p)
    x = input.astype(dtypes.accumulator(input.dtype))
    if p in _PENALTIES_OF_PAIRS:
        return _length(p, distances.summed_of_pairs(distances.Penalty(_PENALTIES_OF_PAIRS[p]), x)).astype(input.dtype)
    first, second = np.triu_indices(input.shape[0], 1)
    if not input.shape[1]:
        return jnp.zeros(first.shape, input.dtype)
    return vector_norm(x[first] - x[second], p, -1).astype(input.dtype)


@layer
class PairwiseDistance(Layer):
    """The distance ``||x1 - x2 + eps||_p`` over the last dimension.

    Shape: x1 and x2 (N, D) or (D), broadcast to one shape; output (N) or (), with a last 1 for ``keepdim``.

    Args:
        p: the degree of the norm; it may be negative.
        eps: added to each difference.
        keepdim: keep the last dimension, as 1.
    """

    norm: float = config(default=2.0, alias="p")
    eps: float = 1e-6
    keepdim: bool = False

    def compute(self, s: Any, x1: Array, x2: Array) -> Array:
        return pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


@layer
class CosineSimilarity(Layer):
    """The cosine of the angle between vectors, ``x1 . x2 / (max(||x1||, eps) max(||x2||, eps))``.

    Shape: x1 and x2 (*1, D, *2), broadcast to one shape; output (*1, *2).

    Args:
        dim: the dimension of the vectors.
        eps: the least length that is divided by.
    """

    dim: int = 1
    eps: float = 1e-8

    def compute(self, s: Any, x1: Array, x2: Array) -> Array:
        return cosine_similarity(x1, x2, self.dim, self.eps)
