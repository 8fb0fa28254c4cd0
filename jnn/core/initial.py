"""The initial distributions of torch's layers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from . import checks, dtypes

Array = jax.Array
Shape = tuple[int, ...]


def uniform(key: Array, shape: Shape, dtype: Any = None, a: float = 0.0, b: float = 1.0) -> Array:
    """Draws from U(a, b). Half types are drawn in float32 and rounded."""
    dtype = _floating("uniform", dtype)
    checks.require(a <= b, "uniform", "a must not be above b", RuntimeError, a=a, b=b)
    checks.require(not jnp.issubdtype(dtype, jnp.complexfloating), "uniform", "dtype must be real", RuntimeError, dtype=dtype)
    return jax.random.uniform(key, shape, dtypes.accumulator(dtype), a, b).astype(dtype)


def normal(key: Array, shape: Shape, dtype: Any = None, mean: float = 0.0, std: float = 1.0) -> Array:
    """Draws from N(mean, std^2); complex ones have half the variance in each part. Half types are drawn in float32 and rounded."""
    dtype = _floating("normal", dtype)
    checks.require(std >= 0, "normal", "std must not be negative", RuntimeError, std=std)
    return (mean + std * jax.random.normal(key, shape, dtypes.accumulator(dtype))).astype(dtype)


def uniform_fan_in(key: Array, shape: Shape, fan_in: int, dtype: Any) -> Array:
    """U(-b, b) with b = 1 / sqrt(fan_in): torch's ``kaiming_uniform_(a=sqrt(5))`` and its bias. Zeros where fan_in is 0."""
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return uniform(key, shape, dtype, -bound, bound) if bound else jnp.zeros(shape, dtype)


def fans(who: object, shape: Shape) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a weight (out, in, *receptive field)."""
    checks.require(len(shape) >= 2, who, "fans need a weight of at least 2 dimensions", ValueError, shape=shape)
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def xavier_uniform(key: Array, shape: Shape, dtype: Any = None, gain: float = 1.0) -> Array:
    """Draws from Glorot's U(-b, b), ``b = gain * sqrt(6 / (fan_in + fan_out))``."""
    bound = gain * math.sqrt(6 / max(1, sum(fans("xavier_uniform", shape))))
    return uniform(key, shape, dtype, -bound, bound)


def xavier_normal(key: Array, shape: Shape, dtype: Any = None, gain: float = 1.0) -> Array:
    """Draws from Glorot's N(0, std^2), ``std = gain * sqrt(2 / (fan_in + fan_out))``."""
    return normal(key, shape, dtype, 0.0, gain * math.sqrt(2 / max(1, sum(fans("xavier_normal", shape)))))


def _floating(who: str, dtype: Any) -> Any:
    dtype = dtypes.parameter(who, dtype)
    checks.require(jnp.issubdtype(dtype, jnp.inexact), who, "dtype must be floating point or complex", RuntimeError, dtype=dtype)
    return dtype
