"""The cross entropy of a linear map's outputs, in one loop over the classes that holds the logits of few of them at a time.

The gradients of the matrix come out class by class, each written once, and those of the rows are summed in a small array; so
the loop moves little memory, and the logits that the backward pass computes again cost less than holding them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks, dtypes
from .varying import alike

Array = jax.Array

# How many rows are done at once unless the options say otherwise.
_ROWS = 4096
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


def _rows_at_once(options: Any, rows: int, classes: int, places: int, features: int) -> int:
    """How many rows are done at once, of ``rows`` with ``classes * places`` logits each."""
    size, method = (None, "auto") if options is None else (options.batch_chunk_size, options.chunking_method)
    if method in (None, "auto"):
        return max(1, min(size or (rows if method is None else _ROWS), rows))
    aim = -(-rows // -(-classes * places // max(1, features)))
    chunk = max(1, min((1 << (aim - 1).bit_length()) // int(method.partition(":")[2] or 1), rows))
    checks.require(size in (None, chunk), "linear_cross_entropy", "batch_chunk_size and chunking_method disagree", size=size, method=method)
    return chunk


def elements(x: Array, head: Head, target: Array, scale: Array | None, smoothing: float, options: Any) -> Array:
    """The loss of each row and position, (N, P), few rows at a time: x (N, F), target and scale (N, P) or target (N, C, P)."""
    n = x.shape[0]
    size = _rows_at_once(options, n, *head.matrix.shape)
    if size >= n:
        return _all_at_once(x, head, target, scale, smoothing)
    blocks = -(-n // size)

    def split(v: Array) -> Array:
        return jnp.pad(v, [(0, blocks * size - n)] + [(0, 0)] * (v.ndim - 1)).reshape(blocks, size, *v.shape[1:])

    rows = split(x), split(target), None if scale is None else split(scale)
    found = lax.map(jax.checkpoint(lambda part: _all_at_once(part[0], head, part[1], part[2], smoothing)), rows)
    return found.reshape(blocks * size, -1)[:n]


def _all_at_once(x: Array, head: Head, target: Array, scale: Array | None, smoothing: float) -> Array:
    """The loss of each row and position, (N, P), for rows ``x`` (N, F). Logits and sums are float32 at least.

    Args:
        target: classes (N, P), each weighted by ``scale``, an array (N, P); or probabilities (N, C, P) where that is None.
        smoothing: how much of the target distribution is made uniform.
    """
    target, scale = jnp.moveaxis(target, 0, -1), None if scale is None else scale.T
    (classes, places, _), n = head.matrix.shape, x.shape[0]
    size, dtype = chunk_size(classes, places * n), dtypes.accumulator(x.dtype)
    chunks = -(-classes // size)

    def part(v: Array) -> Array:
        if chunks * size > classes:
            v = jnp.pad(v, [(0, chunks * size - classes)] + [(0, 0)] * (v.ndim - 1))
        return v.reshape(chunks, size, *v.shape[1:])

    def weighted_target(here: Array, part: _Part) -> Array:
        weight = jnp.ones((1, 1, 1), dtype) if part.head.weight is None else part.head.weight[:, None, None]
        if scale is None:
            return (jnp.asarray(part.probabilities) * (1 - smoothing) + smoothing / classes) * weight
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
    # Without the dimension of one place, for which XLA:CPU would choose another layout and copy the matrix.
    head = head._replace(matrix=head.matrix.reshape(classes, -1))
    parts = _Part(numbers, jax.tree.map(part, head), probabilities)
    zero = jnp.zeros((places, n), dtype)
    x, scale, start, parts = alike(x, scale, _Sums(zero - 1e30, zero, zero, zero), parts)
    sums, _ = lax.scan(step, start, parts)
    return (sums.targets * jnp.log(sums.exponentials) - sums.products).astype(x.dtype).T
