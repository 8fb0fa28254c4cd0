"""Functions linear in each of two arrays, with gradients of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Array = jax.Array


def bilinear(
    value: Callable[[Any, Array, Array], Array],
    by_left: Callable[[Any, Array, Array, Array], Array],
    by_right: Callable[[Any, Array, Array, Array], Array],
) -> Callable[[Any, Array, Array], Array]:
    """``value(static, a, b)`` whose gradients for a cotangent ``g`` are ``by_left(static, g, a, b)`` and ``by_right(static, g, a, b)``.

    Each is linear in ``g`` and in the array that it is not the gradient by; of the other it takes the shape only. Forward mode
    runs their transposes, so that reverse mode, which transposes those, runs them as they are written; every further
    derivative comes from JAX.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def call(static: Any, a: Array, b: Array) -> Array:
        return value(static, a, b)

    def tangent(static: Any, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        (a, b), (da, db) = primals, tangents
        y = call(static, a, b)
        terms = []
        if not isinstance(da, SymbolicZero):
            terms += jax.linear_transpose(lambda g: by_left(static, g, a, b), y)(da * _one(b))
        if not isinstance(db, SymbolicZero):
            terms += jax.linear_transpose(lambda g: by_right(static, g, a, b), y)(db * _one(a))
        return y, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y)

    call.defjvp(tangent, symbolic_zeros=True)
    return call


def _one(x: Array) -> Array:
    """1, of the type of ``x``: under ``shard_map`` an array's type says along which axes it varies."""
    first = x[(0,) * x.ndim]
    return jnp.where(first == first, 1, 1).astype(x.dtype)
