"""Work on the rows of arrays a chunk at a time, so that what is made of all rows is never held whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

Array = jax.Array


def split(x: Array, size: int) -> Array:
    """The rows of ``x`` in chunks of ``size``, the last one padded with zeros."""
    chunks = -(-x.shape[0] // size)
    padding = [(0, chunks * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(chunks, size, *x.shape[1:])


def elements(fn: Callable[[Any, Any], Array], rows: Any, shared: Any) -> Array:
    """``fn(part, shared)`` of each chunk of ``rows``, one after the other; each is computed again in the backward pass."""
    found = lax.map(jax.checkpoint(lambda part: fn(part, shared)), rows)
    return found.reshape(-1, *found.shape[2:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(fn: Callable[[Any, Any], Array], rows: Any, shared: Any) -> Array:
    """The sum of ``fn(part, shared)`` over the chunks of ``rows``.

    Its derivatives are taken together with it, while what a chunk needs is there: nothing is kept and nothing computed twice.
    """

    def step(sum: Array, part: Any) -> tuple[Array, None]:
        return sum + jnp.sum(fn(part, shared)), None

    return lax.scan(step, _zero(fn, rows, shared), rows)[0]


def _zero(fn: Callable[[Any, Any], Array], rows: Any, shared: Any) -> Array:
    first = jax.tree.map(lambda x: x[0], rows)
    return jnp.zeros((), jax.eval_shape(fn, first, shared).dtype)


def _total_jvp(fn: Callable[[Any, Any], Array], primals: tuple[Any, Any], tangents: Any) -> tuple[Array, Array]:
    leaves, structure = jax.tree.flatten(primals)
    slopes, split_at = jax.tree.leaves(tangents), len(jax.tree.leaves(primals[0]))
    moving = [i for i, slope in enumerate(slopes) if not isinstance(slope, SymbolicZero)]
    by_row = sum(i < split_at for i in moving)

    @jax.checkpoint
    def step(sums: Any, part: list[Array]) -> tuple[Any, list[Array]]:
        here = [*part, *leaves[split_at:]]

        def at(moved: list[Array]) -> Array:
            new = dict(zip(moving, moved, strict=True))
            return jnp.sum(fn(*jax.tree.unflatten(structure, [new.get(i, x) for i, x in enumerate(here)])))

        value, grads = jax.value_and_grad(at)([here[i] for i in moving])
        return jax.tree.map(jnp.add, sums, (value, grads[by_row:])), grads[:by_row]

    zero = _zero(fn, *primals)
    start = zero, [jnp.zeros_like(leaves[i]) for i in moving[by_row:]]
    (value, shared), rows = lax.scan(step, start, leaves[:split_at])
    along = (jnp.sum(grad * slopes[i]) for grad, i in zip([*rows, *shared], moving, strict=True))
    return value, sum(along, start=zero)


total.defjvp(_total_jvp, symbolic_zeros=True)
