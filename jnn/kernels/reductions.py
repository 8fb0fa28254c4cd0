"""Means over rows, and softmax."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from .platform import native

Array = jax.Array

# XLA:CPU sums a long row with one chain of additions; in two stages it vectorises (2 to 3 times as fast).
_LANES, _LONG_ROW = 32, 256


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean over ``axes``, in the dtype of ``x``; the axes stay, as ones."""
    first, size = x.ndim - len(axes), math.prod(x.shape[a] for a in axes)
    rows = axes == tuple(range(first, x.ndim)) and size >= _LONG_ROW and size % _LANES == 0
    if not rows or native():
        return jnp.mean(x, axes, keepdims=True)
    lanes = x.reshape(*x.shape[:first], size // _LANES, _LANES)
    return jnp.mean(jnp.mean(lanes, -2), -1).reshape(*x.shape[:first], *(1 for _ in axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Array, axis: int = -1) -> Array:
    """``exp(x_i) / sum_j exp(x_j)`` along an axis."""
    return jax.nn.softmax(x, axis)


@softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Transposed, this is y (g - sum(y g)): the difference is taken before the product, and keeps its digits where y is nearly 1.
    y = softmax(*primals, axis)
    moved = y * tangents[0]
    return y, moved - y * jnp.sum(moved, axis, keepdims=True)
