"""The initial distributions of torch's layers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def uniform_fan_in(key: Array, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
    """U(-b, b) with b = 1 / sqrt(fan_in): torch's ``kaiming_uniform_(a=sqrt(5))`` and its bias. Zeros where fan_in is 0."""
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return jax.random.uniform(key, shape, dtype, -bound, bound) if bound else jnp.zeros(shape, dtype)


def _fans(shape: tuple[int, ...]) -> int:
    """fan_in + fan_out of a weight (out, in, *receptive field)."""
    return (shape[0] + shape[1]) * math.prod(shape[2:])


def xavier_uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Glorot's U(-b, b), b = sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(6 / _fans(shape))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier_normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Glorot's N(0, 2 / (fan_in + fan_out))."""
    return math.sqrt(2 / _fans(shape)) * jax.random.normal(key, shape, dtype)
