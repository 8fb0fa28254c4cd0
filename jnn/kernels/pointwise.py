"""Functions of each element by itself, over long rows."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .platform import native
from .stored import cotangent_stored, large, value_stored

Array = jax.Array

# XLA:CPU unrolls a loop over a shorter last axis and compiles it without vectors: over 12 to 36 elements 2 to 5 times as slow.
_LONG = 64


def over_rows(fn: Callable[..., Array], *arrays: Array, slope: Callable[[Array], Array] | None = None) -> Array:
    """``fn(*arrays)``, of arrays of one shape, which has that shape; trailing axes that are short are one axis for it.

    That must be stored and not only reshaped: XLA would loop over the shape of what is made of it.

    Args:
        slope: the derivative of a function of one array, by its value. What is stored is then what gradients read: XLA would else make
            the value in the shape of ``arrays`` for both.
    """
    x = arrays[0]
    rows = _rows(x)
    if rows == x.shape:
        return fn(*arrays)
    merged = [cotangent_stored(a.reshape(rows)) if jnp.issubdtype(a.dtype, jnp.floating) else a.reshape(rows) for a in arrays]
    y = value_stored(fn(*merged)) if slope is None else _by_value(fn, slope, *merged)
    return y.reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_value(fn: Callable[[Array], Array], slope: Callable[[Array], Array], x: Array) -> Array:
    return value_stored(fn(x))


@_by_value.defjvp
def _by_value_jvp(
    fn: Callable[[Array], Array], slope: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    y = _by_value(fn, slope, *primals)
    return y, tangents[0] * slope(y)


def _rows(x: Array) -> tuple[int, ...]:
    shape = x.shape
    if native() or not large(x) or not all(isinstance(n, int) for n in shape) or not jnp.issubdtype(x.dtype, jnp.floating):
        return shape
    # Axes that are sharded by type cannot be merged.
    while len(shape) > 1 and shape[-1] < _LONG and not any(jax.typeof(x).sharding.spec[len(shape) - 2 :]):
        shape = (*shape[:-2], shape[-2] * shape[-1])
    return shape
