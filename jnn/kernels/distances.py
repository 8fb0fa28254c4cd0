"""Sums of penalties of differences, and cosines, in one pass over what they are of."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import Arrays, by_arrays, differentiable, foreign, gradient
from .sums import sum_last
from .taps import count

Array = jax.Array

# Fewer numbers than these are not worth a call of the library.
_LEAST = 1 << 12


class Penalty(NamedTuple):
    """What is added of a difference ``d``, of which ``shift`` is a part.

    ``kind`` is "square", "size" (``|d|``) or "huber": ``d^2 / 2`` below ``limit``, and beyond it the line that continues it. Pairs of rows
    also have "count", 1 where ``d`` is not 0, and "greatest", the greatest ``|d|`` in place of a sum.
    """

    kind: str
    limit: float = 0.0
    shift: float = 0.0

    def __call__(self, x: Array, y: Array) -> Array:
        """The penalties of ``x - y + shift``."""
        difference = x - y + self.shift if self.shift else x - y
        if self.kind == "square":
            return jnp.square(difference)
        if self.kind == "count":
            return jnp.where((difference > 0) | (difference < 0), 1, lax.stop_gradient(difference))
        distance = size(difference)
        if self.kind == "size":
            return distance
        # A choice, not a minimum, whose gradient is NaN for an infinite distance.
        limited = jnp.where(distance < self.limit, distance, self.limit)
        return limited * (distance - 0.5 * limited)


class _Sum(NamedTuple):
    penalty: Penalty
    axes: int


class _Slopes(NamedTuple):
    penalty: Penalty
    wanted: tuple[bool, bool]


class _Cosine(NamedTuple):
    axis: int | None
    eps: float


def size(x: Array) -> Array:
    """``|x|`` with torch's gradient at 0, which is 0."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x * lax.stop_gradient(jnp.sign(x))


def summed(penalty: Penalty, axes: int, x: Array, y: Array) -> Array:
    """The sum over the last ``axes`` axes of the penalties of two arrays of one shape."""
    static = _Sum(penalty, axes)
    return (_summed if axes and count(x.shape) >= _LEAST else _summed_as_defined)(static, x, y)[0]


def summed_of_pairs(penalty: Penalty, x: Array) -> Array:
    """The sum of the penalties of each pair of rows of a matrix: of 0 and 1, 0 and 2, ..., 1 and 2, ..."""
    return _of_pairs(penalty, x)[0]


def cosine(x: Array, y: Array, axis: int | None, eps: float) -> Array:
    """``x . y / (max(|x|, eps) max(|y|, eps))`` along an axis, from 0 on, or of numbers; the gradient is as if nothing were clamped."""
    last = x.ndim > 0 and axis == x.ndim - 1
    return (_cosine if last else _cosine_as_defined)(_Cosine(axis, eps), x, y)[0]


def root(square: Array) -> Array:
    """The square root with the gradient 0 at 0."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _summed_as_defined(static: _Sum, x: Array, y: Array) -> Arrays:
    return (sum_last(static.penalty(x, y), static.axes),)


def _slopes_as_defined(static: _Slopes, g: Array, x: Array, y: Array) -> Arrays:
    slopes = gradient(_summed_as_defined)(_Sum(static.penalty, x.ndim - g.ndim), (g,), (), (x, y))
    return tuple(slope for slope, want in zip(slopes, static.wanted, strict=True) if want)


def _of_pairs_as_defined(penalty: Penalty, x: Array) -> Arrays:
    first, second = np.triu_indices(x.shape[0], 1)
    if penalty.kind == "greatest":
        return (_greatest(x[first] - x[second]),)
    return (jnp.sum(penalty(x[first], x[second]), -1),)


@jax.custom_jvp
def _greatest(differences: Array) -> Array:
    return jnp.max(jnp.abs(differences), -1, initial=0)


@_greatest.defjvp
def _greatest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # All that are as great have the gradient, as in torch.
    (differences,), (moved,) = primals, tangents
    greatest = _greatest(differences)
    gap = jnp.abs(differences) - greatest[..., None]
    return greatest, jnp.sum(jnp.where(gap < 0, 0, jnp.sign(differences) + gap) * moved, -1)


def _cosine_as_defined(static: _Cosine, x: Array, y: Array) -> Arrays:
    def direction(x: Array) -> Array:
        length = root(jnp.sum(jnp.square(x), static.axis, keepdims=True))
        # The value is clamped and the gradient is not, as in torch.
        return x / (length + lax.stop_gradient(jnp.maximum(length, static.eps) - length))

    return (jnp.sum(direction(x) * direction(y), static.axis),)


def _products_as_defined(_: Any, x: Array, y: Array) -> Arrays:
    return jnp.sum(x * y, -1), jnp.sum(x * x, -1), jnp.sum(y * y, -1)


def _cosine_by_products(static: _Cosine, x: Array, y: Array) -> Arrays:
    both, *squares = _products((), x, y)
    a, b = (jnp.maximum(jnp.sqrt(square), static.eps) for square in squares)
    return (both / a / b,)


def _attributes(penalty: Penalty) -> dict[str, Any]:
    return {"kind": penalty.kind, "limit": np.float64(penalty.limit), "shift": np.float64(penalty.shift)}


_forward = foreign("jnn_differences", _summed_as_defined, lambda static: _attributes(static.penalty))
_backward = foreign(
    "jnn_differences_backward",
    _slopes_as_defined,
    lambda static: _attributes(static.penalty) | dict(zip(("by_x", "by_y"), static.wanted, strict=True)),
)
_products = foreign("jnn_products", _products_as_defined, lambda _: {})


def _wanted_slopes(static: _Sum, gs: Arrays, _: Arrays, arrays: Arrays, wanted: tuple[bool, ...]) -> list[Array | None]:
    slopes = iter(_backward(_Slopes(static.penalty, (wanted[0], wanted[1])), *gs, *arrays))
    return [next(slopes) if want else None for want in wanted]


_summed = differentiable(_summed_as_defined, lambda static, *arrays: (_forward(static, *arrays), ()), _wanted_slopes)
_of_pairs = by_arrays("jnn_pairs", _of_pairs_as_defined, _attributes)
_cosine = differentiable(
    _cosine_as_defined,
    lambda static, *arrays: (_cosine_as_defined(static, *arrays), ()),
    lambda static, gs, residuals, arrays, wanted: gradient(_cosine_as_defined)(static, gs, residuals, arrays),
    _cosine_by_products,
)
