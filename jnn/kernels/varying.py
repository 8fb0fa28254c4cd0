"""Under ``shard_map`` an array's type says along which axes its values differ between devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def alike(*arrays: Any, tangents: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """The arrays, all of them varying along the axes along which any of them does: what a primitive of one's own needs.

    Those of ``tangents``, which follow, are made so too; as of them nothing else may depend, they are not looked at.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes or not all(x.size for x in arrays):
        return (*arrays, *tangents)
    one = jnp.ones(())
    for x in arrays:
        one *= _one(x).astype(one.dtype)
    return tuple(x * one.astype(x.dtype) for x in (*arrays, *tangents))


def _one(x: Array) -> Array:
    """1, of the type of ``x``."""
    first = lax.squeeze(lax.slice(x, [0] * x.ndim, [1] * x.ndim), range(x.ndim))
    one = jnp.ones((), x.dtype)
    return jnp.where(first == first, one, one)
