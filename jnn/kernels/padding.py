"""Extending arrays by what they hold themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import Arrays, differentiable, foreign, gradient

Array = jax.Array
# Of an array, an axis, and by how much it grows before and after, or shrinks where that is negative: the array that it becomes.
Extend = Callable[[Array, int, int, int], Array]


class _Extension(NamedTuple):
    extend: Extend
    sides: tuple[tuple[int, int, int], ...]
    # The spatial sizes, and how many axes there are before them.
    sizes: tuple[int, ...]
    before: int


def extended(extend: Extend, x: Array, sides: tuple[tuple[int, int, int], ...]) -> Array:
    """``extend`` along each of ``sides``, (axis, before, after), of up to three axes, the last ones of ``x``."""
    before = x.ndim - len(sides)
    return _extended(_Extension(extend, sides, x.shape[before:], before), x)[0]


def _definition(static: _Extension, x: Array) -> Arrays:
    for side in static.sides:
        x = static.extend(x, *side)
    return (x,)


def _as_rows(static: _Extension, x: Array) -> Arrays:
    """The definition for arrays with one axis before three spatial ones."""
    (y,) = _definition(static, x.reshape(-1, *static.sizes))
    return (y.reshape(y.shape[0], *(1,) * (4 - y.ndim), *y.shape[1:]),)


def _indices(static: _Extension) -> dict[str, Any]:
    """Which elements of each axis the extended one reads."""
    read = {axis: (low, high) for axis, low, high in static.sides}
    with jax.ensure_compile_time_eval():
        found = [np.asarray(static.extend(jnp.arange(size), 0, *read[static.before + i]), np.int64) for i, size in enumerate(static.sizes)]
    names = ("depths", "rows", "columns")
    return {name: np.zeros(1, np.int64) for name in names} | dict(zip(names[-len(found) :], found))


_rows = foreign("jnn_extended", _as_rows, _indices)


def _forward(static: _Extension, x: Array) -> tuple[Arrays, Arrays]:
    inner = static._replace(before=1, sides=tuple((axis - static.before + 1, low, high) for axis, low, high in static.sides))
    (y,) = _rows(inner, x.reshape(-1, *(1,) * (3 - len(static.sizes)), *static.sizes))
    return (y.reshape(*x.shape[: static.before], *y.shape[4 - len(static.sizes) :]),), ()


_slopes = gradient(_definition)
_extended = differentiable(_definition, _forward, lambda static, gs, residuals, arrays, wanted: _slopes(static, gs, residuals, arrays))
