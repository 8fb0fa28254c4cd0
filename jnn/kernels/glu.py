"""Gated linear units, whose gradient XLA:CPU writes with one thread."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import Arrays, by_arrays

Array = jax.Array


class _Halves(NamedTuple):
    """The axis along which halves are, and the numbers of half of what stands from it on."""

    axis: int
    half: int


def glu(x: Array, axis: int) -> Array:
    """``a sigmoid(b)`` of the halves of ``x`` along ``axis``, from 0 on."""
    return _glu(_Halves(axis, math.prod(x.shape[axis:]) // 2), x)[0]


def _as_defined(halves: _Halves, x: Array) -> Arrays:
    a, b = jnp.split(x, 2, halves.axis)
    return (a * jax.nn.sigmoid(b),)


def _attributes(halves: _Halves) -> dict[str, Any]:
    return {"half": np.int64(halves.half)}


_glu = by_arrays("jnn_glu", _as_defined, _attributes)
