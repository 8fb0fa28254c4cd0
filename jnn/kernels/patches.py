"""Convolutions as a matmul over patches, what each place of the output sees of the input.

Of patches and weights, the smaller are put in the order that the larger have.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from .stored import stored
from .taps import Geometry, Ints, count, pad

Array = jax.Array


def fewer_than_weights(geometry: Geometry, batch: int, sizes: Ints, outputs: int) -> bool:
    """Whether the patches of an output with spatial ``sizes`` are no more than the weights."""
    return geometry.groups == 1 and count((batch, *sizes)) <= outputs


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """The convolution."""
    few = fewer_than_weights(geometry, x.shape[0], geometry.sizes(x.shape[2:], w.shape[2:]), w.shape[0])
    columns = _columns(x, geometry=geometry, kernel=w.shape[2:], channels_first=few)
    w = w if few else stored(jnp.moveaxis(w, 1, -1))
    y = jnp.tensordot(columns, w.reshape(w.shape[0], *columns.shape[-2:]), ((-2, -1), (1, 2)))
    return jnp.moveaxis(stored(y), -1, 1)


def by_input(geometry: Geometry, g: Array, w: Array, sizes: Ints) -> Array:
    """The gradient by an input with spatial ``sizes``, where patches are fewer than weights."""
    channels, kernel = w.shape[1], w.shape[2:]
    columns = jnp.tensordot(stored(jnp.moveaxis(g, 1, -1)), w.reshape(-1, channels, math.prod(kernel)), 1)
    # An array and no mere shape: under shard_map its type says along which axes it varies.
    x = jnp.broadcast_to(columns[(0,) * columns.ndim], (g.shape[0], channels, *sizes))
    of = functools.partial(_columns, geometry=geometry, kernel=kernel, channels_first=True)
    (x,) = jax.linear_transpose(of, x)(columns)
    return x


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight, for the cotangent ``g`` of the output."""
    few = fewer_than_weights(geometry, g.shape[0], g.shape[2:], g.shape[1])
    columns, places = _columns(x, geometry=geometry, kernel=kernel, channels_first=few), tuple(range(g.ndim - 1))
    w = jnp.tensordot(stored(jnp.moveaxis(g, 1, -1)), columns, (places, places))
    if few:
        return w.reshape(*w.shape[:2], *kernel)
    return jnp.moveaxis(stored(w.reshape(w.shape[0], *kernel, w.shape[-1])), -1, 1)


def _columns(x: Array, *, geometry: Geometry, kernel: Ints, channels_first: bool) -> Array:
    """The patches, (N, *sizes, C, prod(kernel)) or else (N, *sizes, prod(kernel), C)."""
    sizes, channels, offsets = geometry.sizes(x.shape[2:], kernel), x.shape[1], math.prod(kernel)
    x = pad(stored(jnp.moveaxis(x, 1, -1))[:, None], [*geometry.padding, (0, 0)])[:, 0]
    # Axis by axis: fewer slices than kernel offsets.
    for axis, (size, k) in enumerate(zip(sizes, kernel)):
        stride, stop = geometry.stride[axis], (size - 1) * geometry.stride[axis] + 1
        starts = range(0, k * geometry.dilation[axis], geometry.dilation[axis])
        x = jnp.stack([lax.slice_in_dim(x, a, a + stop, stride, axis + 1) for a in starts], -1 if channels_first else -2)
    return x.reshape(*x.shape[: len(kernel) + 1], *((channels, offsets) if channels_first else (offsets, channels)))
