"""Under ``shard_map`` an array's type says along which axes its values differ between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def alike(*trees: Any) -> tuple[Any, ...]:
    """The pytrees, all of whose arrays vary along the axes along which any does: what loops and primitives of one's own need."""
    arrays, form = jax.tree.flatten(trees)
    own = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset[Any]().union(*own)
    cast = (x if axes == every else lax.pcast(x, tuple(sorted(every - axes)), to="varying") for x, axes in zip(arrays, own, strict=True))
    return jax.tree.unflatten(form, cast)


def transposed(linear: Callable[[Array], Array], like: jax.ShapeDtypeStruct, g: Array) -> Array:
    """The transposition of ``linear``, a function of an array like this one, of ``g``; both vary along the same axes."""
    example, _ = alike(jnp.zeros(like.shape, like.dtype), g)
    return jax.linear_transpose(linear, example)(g)[0]
