"""Under ``shard_map`` an array's type says along which axes its values differ between devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def alike(*arrays: Any, of: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """The arrays, all of them varying along the axes along which any of them does, or of ``of``: what a primitive of one's own needs."""
    if not jax.sharding.get_abstract_mesh().manual_axes or not all(x.size for x in arrays):
        return arrays
    one = jnp.ones(())
    for x in arrays if of is None else of:
        one *= _one(x).astype(one.dtype)
    return tuple(x * one.astype(x.dtype) for x in arrays)


def _one(x: Array) -> Array:
    """1, of the type of ``x``."""
    first = lax.squeeze(lax.slice(x, [0] * x.ndim, [1] * x.ndim), range(x.ndim))
    one = jnp.ones((), x.dtype)
    return jnp.where(first == first, one, one)
