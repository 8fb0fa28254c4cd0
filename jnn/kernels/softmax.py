"""Softmax and its logarithm, with gradients that keep their digits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .foreign import differentiable, foreign
from .gather import pick

Array = jax.Array
Arrays = tuple[Array, ...]


def softmax(x: Array, axis: int = -1) -> Array:
    """``exp(x_i) / sum_j exp(x_j)`` along an axis."""
    return _softmax(x, axis) if axis % x.ndim < x.ndim - 1 else _last(False, x)[0]


def log_softmax(x: Array, axis: int = -1) -> Array:
    """``x_i - log sum_j exp(x_j)`` along an axis."""
    return jax.nn.log_softmax(x, axis) if axis % x.ndim < x.ndim - 1 else _last(True, x)[0]


def log_softmax_at(x: Array, index: Array, axis: int) -> Array:
    """What :func:`log_softmax` has at ``index``, which has the shape of ``x`` without ``axis``; of no class, at 0."""
    if axis % x.ndim < x.ndim - 1 or not x.shape[axis]:
        return pick(jax.nn.log_softmax(x, axis), index, axis)[0]
    return _at((), x, jnp.where((index >= 0) & (index < x.shape[axis]), index, 0).astype(jnp.int32))[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: Array, axis: int) -> Array:
    return jax.nn.softmax(x, axis)


@_softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Transposed, this is y (g - sum(y g)): the difference is taken before the product, and keeps its digits where y is nearly 1.
    y = _softmax(*primals, axis)
    moved = y * tangents[0]
    return y, moved - y * jnp.sum(moved, axis, keepdims=True)


def _last_as_defined(log: bool, x: Array) -> Arrays:
    return (jax.nn.log_softmax(x) if log else _softmax(x, -1),)


def _last_slopes_as_defined(log: bool, g: Array, y: Array) -> Arrays:
    return (g - jnp.exp(y) * jnp.sum(g, -1, keepdims=True) if log else y * (g - jnp.sum(y * g, -1, keepdims=True)),)


def _at_as_defined(_: Any, x: Array, index: Array) -> Arrays:
    y = jax.nn.log_softmax(x)
    most = jax.lax.stop_gradient(jnp.max(x, -1))
    return pick(y, index, -1)[0], most, jax.nn.logsumexp(x - most[..., None], -1)


def _at_slopes_as_defined(_: Any, g: Array, x: Array, index: Array, most: Array, off: Array) -> Arrays:
    chosen = jax.nn.one_hot(index, x.shape[-1], dtype=x.dtype)
    return (g[..., None] * (chosen - jnp.exp(x - most[..., None] - off[..., None])),)


def _log(log: bool) -> dict[str, Any]:
    return {"log": log}


_last_forward = foreign("jnn_softmax", _last_as_defined, _log)
_last_backward = foreign("jnn_softmax_backward", _last_slopes_as_defined, _log)
_at_forward = foreign("jnn_log_softmax_at", _at_as_defined, lambda _: {})
_at_backward = foreign("jnn_log_softmax_at_backward", _at_slopes_as_defined, lambda _: {})


def _last_with_residuals(log: bool, x: Array) -> tuple[Arrays, Arrays]:
    return (outputs := _last_forward(log, x)), outputs


def _at_with_residuals(_: Any, *arrays: Array) -> tuple[Arrays, Arrays]:
    y, *rest = _at_forward((), *arrays)
    return (y,), tuple(rest)


_last = differentiable(_last_as_defined, _last_with_residuals, lambda log, gs, residuals, *_: _last_backward(log, *gs, *residuals))
_at = differentiable(
    lambda _, *arrays: _at_as_defined(_, *arrays)[:1],
    _at_with_residuals,
    lambda _, gs, residuals, arrays, wanted: _at_backward((), *gs, *arrays, *residuals),
)
