"""Softmax, with a gradient that keeps its digits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


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
