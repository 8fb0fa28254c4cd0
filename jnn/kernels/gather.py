"""Reading one element of each row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def pick(scores: Array, target: Array, axis: int) -> tuple[Array, Array, Array]:
    """The scores of the target classes, the targets with 0 for those that are no class of ``scores``, and which are.

    ``target`` has the shape of ``scores`` with any size at ``axis``, or without it.
    """
    classes = scores.shape[axis]
    valid = (target >= 0) & (target < classes)
    index = jnp.where(valid, target, 0)
    if classes == 0:
        return jnp.zeros(target.shape, scores.dtype), index, valid
    if target.ndim == scores.ndim:
        return jnp.take_along_axis(scores, index, axis, mode="promise_in_bounds"), index, valid
    picked = jnp.take_along_axis(scores, jnp.expand_dims(index, axis), axis, mode="promise_in_bounds")
    return jnp.squeeze(picked, axis), index, valid
