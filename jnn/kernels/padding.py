"""Extending arrays by what they hold themselves, or by a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import Arrays, differentiable, foreign, takes
from .multilinear import Like
from .varying import transposed

Array = jax.Array
# Of an array, an axis, and by how much it grows before and after, or shrinks where that is negative: the array that it becomes.
Extend = Callable[[Array, int, int, int], Array]


class _Fill(NamedTuple):
    """Extends by a number."""

    value: float

    def __call__(self, x: Array, axis: int, before: int, after: int) -> Array:
        return lax.pad(x, jnp.asarray(self.value, x.dtype), [(before, after, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])


# What stands for the number that is filled in among the indices of elements.
_FILLED = _Fill(-1)


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


def filled(x: Array, value: Any, sides: tuple[tuple[int, int, int], ...]) -> Array:
    """``x`` extended by the number ``value`` along each of ``sides``, of any number of axes."""
    # A program for 0 is found again for -0, which is equal to it.
    negative_zero = isinstance(value, float) and value == 0 and math.copysign(1, value) < 0
    if isinstance(value, int | float) and not negative_zero and 1 <= len(sides) <= 3 and takes(x):
        return extended(_Fill(float(value)), x, sides)
    widths = [(0, 0, 0)] * (x.ndim - len(sides)) + [(low, high, 0) for _, low, high in sides[::-1]]
    return lax.pad(x, jnp.asarray(value).astype(x.dtype), widths)


def _definition(static: _Extension, x: Array) -> Arrays:
    for side in static.sides:
        x = static.extend(x, *side)
    return (x,)


def _as_rows(static: _Extension, x: Array) -> Arrays:
    """The definition for arrays with one axis before three spatial ones."""
    (y,) = _definition(static, x.reshape(-1, *static.sizes))
    return (y.reshape(y.shape[0], *(1,) * (4 - y.ndim), *y.shape[1:]),)


def _indices(static: _Extension) -> dict[str, Any]:
    """Which elements of each axis the extended one reads, and what is filled in."""
    fill = static.extend if isinstance(static.extend, _Fill) else None
    extend = static.extend if fill is None else _FILLED
    read = {axis: (low, high) for axis, low, high in static.sides}
    with jax.ensure_compile_time_eval():
        found = [np.asarray(extend(jnp.arange(size), 0, *read[static.before + i]), np.int64) for i, size in enumerate(static.sizes)]
    names = ("depths", "rows", "columns")
    whole = {name: np.zeros(1, np.int64) for name in names}
    return whole | dict(zip(names[-len(found) :], found)) | {"value": np.float64(0 if fill is None else fill.value)}


def _slopes_as_rows(static: _Extension, g: Array) -> Arrays:
    like = Like((len(g), *_volume(static.sizes)), g.dtype)
    return (transposed(lambda x: _as_rows(static, x)[0], like, g),)


_rows = foreign("jnn_extended", _as_rows, _indices)
_slopes_of_rows = foreign("jnn_extended_gradient", _slopes_as_rows, _indices)


def _volume(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Three sizes, the first of them 1 where there are fewer."""
    return (*(1,) * (3 - len(sizes)), *sizes)


def _inner(static: _Extension) -> _Extension:
    """With one axis before the spatial ones."""
    return static._replace(before=1, sides=tuple((axis - static.before + 1, low, high) for axis, low, high in static.sides))


def _forward(static: _Extension, x: Array) -> tuple[Arrays, Arrays]:
    (y,) = _rows(_inner(static), x.reshape(-1, *_volume(static.sizes)))
    return (y.reshape(*x.shape[: static.before], *y.shape[4 - len(static.sizes) :]),), ()


def _backward(static: _Extension, gs: Arrays, _: Arrays, arrays: Arrays, wanted: tuple[bool, ...]) -> Arrays:
    (g,), (x,) = gs, arrays
    # No gradient reaches what is cropped altogether.
    if not g.size:
        return (jnp.zeros_like(x),)
    (slopes,) = _slopes_of_rows(_inner(static), g.reshape(-1, *_volume(g.shape[static.before :])))
    return (slopes.reshape(x.shape),)


_extended = differentiable(_definition, _forward, _backward)
