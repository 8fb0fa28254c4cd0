"""Affine maps of rows: x (n, inputs), weight (outputs, inputs), bias (outputs,)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .foreign import Arrays, differentiable, foreign
from .platform import by_library

Array = jax.Array

# Up to so many rows each weight is used at once, and putting them in order takes longer than the product.
_FEW_ROWS, _FEW_SLOPES = 1, 4
# Up to so many outputs too: XLA's products of 2,048 x 1,024 and 8 take 0.4 to 0.6 of the time.
_FEW_OUTPUTS = 8


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias`` for ``x`` (*, inputs)."""
    if not by_library() or weight.shape[0] <= _FEW_OUTPUTS:
        return _affine(x, weight, bias)
    # Not -1, which no elements leave open.
    y = _linear(None, x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight, *([] if bias is None else [bias]))[0]
    return y.reshape(*x.shape[:-1], weight.shape[0])


def by_input(g: Array, weight: Array) -> Array:
    """The gradient by ``x`` of two dimensions, for ``g``, that of what :func:`linear` gives."""
    return _by_input(None, g, weight)[0]


def by_weight(g: Array, x: Array) -> Array:
    """The gradient by the weight, likewise."""
    return _by_weight(False, g, x)[0]


def _affine(x: Array, weight: Array, bias: Array | None) -> Array:
    # No transposed copy of the weight to be kept for the backward pass, which inside a scan would be one for each step.
    y = lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _definition(_: None, x: Array, weight: Array, bias: Array | None = None) -> Arrays:
    return (_affine(x, weight, bias),)


def _by_input_as_defined(_: None, g: Array, weight: Array) -> Arrays:
    return (g @ weight,)


def _by_weight_as_defined(total: bool, g: Array, x: Array) -> Arrays:
    """And, where it is wanted, the gradient by the bias."""
    slope = lax.dot_general(g, x, (((0,), (0,)), ((), ())))
    return (slope, jnp.sum(g, 0)) if total else (slope,)


def _call(target: str, definition: Any, few: int = 0) -> Any:
    """``definition`` as a call of the library, but for few rows."""
    run = foreign(target, definition, lambda _: {})
    return lambda static, rows, *arrays: (run if rows.shape[0] > few else definition)(static, rows, *arrays)


_forward = _call("jnn_linear", _definition, _FEW_ROWS)
_by_input = _call("jnn_linear_by_input", _by_input_as_defined, _FEW_SLOPES)
_by_weight = _call("jnn_linear_by_weight", _by_weight_as_defined)


def _with_residuals(_: None, *arrays: Array) -> tuple[Arrays, Arrays]:
    return _forward(None, *arrays), ()


def _backward(_: None, gs: Arrays, residuals: Arrays, arrays: Arrays, wanted: Sequence[bool]) -> list[Array | None]:
    (g,), (x, weight) = gs, arrays[:2]
    total = any(wanted[2:])
    by_x = by_input(g, weight) if wanted[0] else None
    if not wanted[1]:
        return [by_x, None, jnp.sum(g, 0) if total else None][: len(arrays)]
    return [by_x, *_by_weight(total, g, x), None][: len(arrays)]


_linear = differentiable(_definition, _with_residuals, _backward)
