"""Affine maps of rows: x (n, inputs), weight (outputs, inputs), bias (outputs,)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .foreign import Arrays, differentiable, foreign
from .platform import by_library

Array = jax.Array

# Up to so many rows each weight is used at once, and putting them in order takes longer than the product.
_FEW_ROWS, _FEW_SLOPES = 1, 4
# Up to so many outputs XLA's products with the weight take 0.4 to 1 of the time, and with more that fill a vector and half of another at
# most, of so many numbers, 0.65 to 0.8.
_FEW_OUTPUTS, _UNEVEN, _MANY = 8, range(17, 27), 1 << 20


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias`` for ``x`` (*, inputs)."""
    if not by_library():
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


def _call(target: str, definition: Any, of_library: Callable[..., bool]) -> Any:
    """``definition`` as a call of the library, of arrays that it takes."""
    run = foreign(target, definition, lambda _: {})
    return lambda static, *arrays: (run if of_library(*arrays) else definition)(static, *arrays)


def _takes_forward(x: Array, weight: Array, *_: Array) -> bool:
    rows, inputs, outputs = *x.shape, weight.shape[0]
    return rows > _FEW_ROWS and outputs > _FEW_OUTPUTS and not (outputs in _UNEVEN and rows * inputs >= _MANY)


def _takes_by_input(g: Array, _: Array) -> bool:
    rows, outputs = g.shape
    return rows > _FEW_SLOPES and outputs > _FEW_OUTPUTS


_forward = _call("jnn_linear", _definition, _takes_forward)
_by_input = _call("jnn_linear_by_input", _by_input_as_defined, _takes_by_input)
_by_weight = foreign("jnn_linear_by_weight", _by_weight_as_defined, lambda _: {})


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
