"""Softmax and its logarithm, with gradients that keep their digits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import differentiable, foreign
from .gather import pick

Array = jax.Array
Arrays = tuple[Array, ...]


class Form(NamedTuple):
    """Whether the logarithm is taken, the axis, from 0 on, and whether it is of ``-x``."""

    log: bool
    axis: int
    negated: bool = False


def softmax(x: Array, axis: int = -1) -> Array:
    """``exp(x_i) / sum_j exp(x_j)`` along an axis."""
    return _along(Form(False, axis % x.ndim), x)[0]


def softmin(x: Array, axis: int = -1) -> Array:
    """The softmax of ``-x``."""
    return _along(Form(False, axis % x.ndim, True), x)[0]


def log_softmax(x: Array, axis: int = -1) -> Array:
    """``x_i - log sum_j exp(x_j)`` along an axis."""
    return _along(Form(True, axis % x.ndim), x)[0]


def log_softmax_at(x: Array, index: Array, axis: int) -> Array:
    """What :func:`log_softmax` has at ``index``, which has the shape of ``x`` without ``axis``; of no class, at 0."""
    if not x.shape[axis]:
        return pick(log_softmax(x, axis), index, axis)[0]
    return _at(axis % x.ndim, x, jnp.where((index >= 0) & (index < x.shape[axis]), index, 0).astype(jnp.int32))[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: Array, axis: int) -> Array:
    return jax.nn.softmax(x, axis)


@_softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Transposed, this is y (g - sum(y g)): the difference is taken before the product, and keeps its digits where y is nearly 1.
    y = _softmax(*primals, axis)
    moved = y * tangents[0]
    return y, moved - y * jnp.sum(moved, axis, keepdims=True)


def _along_as_defined(form: Form, x: Array) -> Arrays:
    x = -x if form.negated else x
    return (jax.nn.log_softmax(x, form.axis) if form.log else _softmax(x, form.axis),)


def _along_slopes_as_defined(form: Form, g: Array, y: Array) -> Arrays:
    total = jnp.sum(g if form.log else y * g, form.axis, keepdims=True)
    slopes = g - jnp.exp(y) * total if form.log else y * (g - total)
    return (-slopes if form.negated else slopes,)


def _at_as_defined(axis: int, x: Array, index: Array) -> Arrays:
    y = jax.nn.log_softmax(x, axis)
    most = jax.lax.stop_gradient(jnp.max(x, axis))
    return pick(y, index, axis)[0], most, jax.nn.logsumexp(x - jnp.expand_dims(most, axis), axis)


def _at_slopes_as_defined(axis: int, g: Array, x: Array, index: Array, most: Array, off: Array) -> Arrays:
    chosen = jax.nn.one_hot(index, x.shape[axis], dtype=x.dtype, axis=axis)
    g, most, off = (jnp.expand_dims(a, axis) for a in (g, most, off))
    return (g * (chosen - jnp.exp(x - most - off)),)


def _attributes(form: Form) -> dict[str, Any]:
    return form._asdict() | {"axis": np.int64(form.axis)}


def _axis(axis: int) -> dict[str, Any]:
    return {"axis": np.int64(axis)}


_along_forward = foreign("jnn_softmax", _along_as_defined, _attributes)
_along_backward = foreign("jnn_softmax_backward", _along_slopes_as_defined, _attributes)
_at_forward = foreign("jnn_log_softmax_at", _at_as_defined, _axis)
_at_backward = foreign("jnn_log_softmax_at_backward", _at_slopes_as_defined, _axis)


def _along_with_residuals(form: Form, x: Array) -> tuple[Arrays, Arrays]:
    return (outputs := _along_forward(form, x)), outputs


def _at_with_residuals(axis: int, *arrays: Array) -> tuple[Arrays, Arrays]:
    y, *rest = _at_forward(axis, *arrays)
    return (y,), tuple(rest)


_along = differentiable(_along_as_defined, _along_with_residuals, lambda form, gs, residuals, *_: _along_backward(form, *gs, *residuals))
_at = differentiable(
    lambda axis, *arrays: _at_as_defined(axis, *arrays)[:1],
    _at_with_residuals,
    lambda axis, gs, residuals, arrays, wanted: _at_backward(axis, *gs, *arrays, *residuals),
)
