"""Equal trees of arrays as one, with a new first axis, in programs whose compile time hardly grows with their number.

XLA:CPU compiles a kernel for each slice at a constant offset, one for each of the hundreds of gradients of a deep network. At an
offset that it does not know all slices of a shape are one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .platform import native

Array = jax.Array


def stack(trees: Sequence[Any]) -> Any:
    """``jnp.stack`` of each leaf of equal trees."""
    if native():
        return _plain(trees)
    leaves, (structure, *_) = zip(*map(jax.tree.flatten, trees), strict=True)
    columns = list(zip(*leaves, strict=True))
    smooth = [jnp.issubdtype(column[0].dtype, jnp.inexact) for column in columns]
    moving = iter(_stack([list(column) for column, moves in zip(columns, smooth, strict=True) if moves]))
    return jax.tree.unflatten(structure, [next(moving) if moves else jnp.stack(c) for c, moves in zip(columns, smooth, strict=True)])


def _plain(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *rows: jnp.stack(rows), *trees)


@jax.custom_jvp
def _stack(columns: list[list[Array]]) -> list[Array]:
    return [jnp.stack(rows) for rows in columns]


@_stack.defjvp
def _stack_jvp(primals: tuple[list[list[Array]]], tangents: tuple[list[list[Array]]]) -> tuple[list[Array], list[Array]]:
    stacked, (columns,) = _stack(*primals), tangents
    numbers = _unknown_numbers(len(columns[0])) if columns else ()
    return stacked, [_rows_of(jnp.zeros_like(whole), rows, numbers) for whole, rows in zip(stacked, columns, strict=True)]


def _rows_of(zeros: Array, rows: list[Array], numbers: Sequence[Array]) -> Array:
    """``jnp.stack(rows)``, by an operation whose transpose reads its row and passes the rest on as it is."""
    where = lax.ScatterDimensionNumbers(tuple(range(zeros.ndim - 1)), (0,), (0,))
    for i, row in zip(numbers, rows, strict=True):
        zeros = lax.scatter_add(zeros, i[None], row, where, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
    return zeros


def _unknown_numbers(n: int) -> tuple[Array, ...]:
    """0 to n - 1, as values that XLA does not find out: they come out of a loop that moves each to its place."""

    def step(seen: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        return (i, *seen[:-1]), None

    return lax.scan(step, (jnp.int32(0),) * n, jnp.arange(n, dtype=jnp.int32), reverse=True)[0]
