"""Functions linear in each of two arrays, with gradients of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
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
        return run(static, a, b)

    run = jax.jit(value, static_argnums=0)
    by_each = (_transposed(by_left, 1), _transposed(by_right, 0))

    def tangent(static: Any, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        y = call(static, *primals)
        terms = [
            moves(static, y, moved, *primals) for moves, moved in zip(by_each, tangents, strict=True) if not isinstance(moved, SymbolicZero)
        ]
        return y, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y)

    call.defjvp(tangent, symbolic_zeros=True)
    return call


def _transposed(gradient: Callable[[Any, Array, Array, Array], Array], other: int) -> Callable[..., Array]:
    """``gradient`` as a map from the other side. It is compiled, so that equal calls in a program are traced once."""

    @functools.partial(jax.jit, static_argnums=0)
    def moves(static: Any, y: Array, moved: Array, a: Array, b: Array) -> Array:
        (term,) = jax.linear_transpose(lambda g: gradient(static, g, a, b), y)(moved * _one((a, b)[other]))
        return term

    return moves


def _one(x: Array) -> Array:
    """1, of the type of ``x``: under ``shard_map`` an array's type says along which axes it varies."""
    first = lax.squeeze(lax.slice(x, [0] * x.ndim, [1] * x.ndim), range(x.ndim))
    one = jnp.ones((), x.dtype)
    return jnp.where(first == first, one, one)
