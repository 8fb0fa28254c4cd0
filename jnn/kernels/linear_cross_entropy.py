"""The cross entropy of a linear map's outputs, in one loop over the classes that holds the logits of few of them at a time.

The gradients of the matrix come out class by class, each written once, and those of the rows are summed in a small array; so
the loop moves little memory, and the logits that the backward pass computes again cost less than holding them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core import dtypes

Array = jax.Array

# How many logits are held at once: 16 MiB in float32.
LOGITS = 2**22


class Head(NamedTuple):
    """The linear map: matrix (C, P, F), bias (C, P), and the weight of each class (C,)."""

    matrix: Array
    bias: Array | None
    weight: Array | None


class _Part(NamedTuple):
    """What a step has its part of: classes by number, the head, and probabilities (C, P, N)."""

    classes: Array
    head: Head
    probabilities: Array | None


class _Sums(NamedTuple):
    """Over the classes seen, with q their weighted target: the largest logit m, sums of exp(l - m), of q and of q (l - m)."""

    largest: Array
    exponentials: Array
    targets: Array
    products: Array


def chunk_size(classes: int, columns: int) -> int:
    """How many of ``classes`` are done at once, with ``columns`` logits each: a divisor where there is one of about the size."""
    most = max(1, min(classes, LOGITS // max(1, columns)))
    return next((size for size in range(most, most // 2, -1) if classes % size == 0), most)


def elements(x: Array, head: Head, target: Array, scale: Any, smoothing: float) -> Array:
    """The loss of each row and position, (P, N), for rows ``x`` (N, F). Logits and sums are float32 at least.

    Args:
        target: classes (P, N), each weighted by ``scale``, an array (P, N); or probabilities (C, P, N) where that is None.
        smoothing: how much of the target distribution is made uniform.
    """
    (classes, places, _), n = head.matrix.shape, x.shape[0]
    size, dtype = chunk_size(classes, places * n), dtypes.accumulator(x.dtype)
    chunks = -(-classes // size)

    def part(v: Array) -> Array:
        if chunks * size > classes:
            v = jnp.pad(v, [(0, chunks * size - classes)] + [(0, 0)] * (v.ndim - 1))
        return v.reshape(chunks, size, *v.shape[1:])

    def weighted_target(here: Array, part: _Part) -> Array:
        weight = jnp.ones((1, 1, 1), dtype) if part.head.weight is None else part.head.weight[:, None, None]
        if part.probabilities is not None:
            return (part.probabilities * (1 - smoothing) + smoothing / classes) * weight
        hit = jnp.where(here == target[None], scale[None], 0)
        return hit * (1 - smoothing) + smoothing / classes * weight if smoothing else hit

    @jax.checkpoint
    def step(sums: _Sums, part: _Part) -> tuple[_Sums, None]:
        matrix, bias, _ = part.head
        logits = jnp.matmul(matrix.reshape(size * places, -1), x.T, preferred_element_type=dtype).reshape(size, places, n)
        logits = logits if bias is None else logits + bias[:, :, None]
        here = part.classes[:, None, None]
        weighted = weighted_target(here, part)
        if chunks * size > classes:
            logits, weighted = jnp.where(here < classes, logits, -jnp.inf), jnp.where(here < classes, weighted, 0)
        largest = lax.stop_gradient(jnp.maximum(sums.largest, jnp.max(logits, 0)))
        shift, logits = sums.largest - largest, logits - largest[None]
        return _Sums(
            largest,
            sums.exponentials * jnp.exp(shift) + jnp.sum(jnp.exp(logits), 0),
            sums.targets + jnp.sum(weighted, 0),
            sums.products + sums.targets * shift + jnp.sum(jnp.where(weighted == 0, 0, weighted * logits), 0),
        ), None

    numbers, probabilities = jnp.arange(chunks * size).reshape(chunks, size), None if scale is not None else part(target)
    parts = _Part(numbers, jax.tree.map(part, head), probabilities)
    zero = jnp.zeros((places, n), dtype)
    sums, _ = lax.scan(step, _Sums(zero - 1e30, zero, zero, zero), parts)
    return (sums.targets * jnp.log(sums.exponentials) - sums.products).astype(x.dtype)
