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
