"""Convolutions as a matmul over patches, what each place of the output sees of the input.

Of patches and weights, the smaller are put in the order that the larger have.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from .stored import stored
from .taps import Geometry, Ints, count, pad, taps

Array = jax.Array


def fewer_than_weights(geometry: Geometry, batch: int, sizes: Ints, outputs: int) -> bool:
    """Whether the patches of an output with spatial ``sizes`` are no more than the weights."""
    return geometry.groups == 1 and count((batch, *sizes)) <= outputs


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """The convolution."""
    kernel, (outputs, channels) = w.shape[2:], w.shape[:2]
    sizes = geometry.sizes(x.shape[2:], kernel)
    few = fewer_than_weights(geometry, x.shape[0], sizes, outputs)
    columns = _columns(x, geometry=geometry, kernel=kernel, channels_first=few).reshape(-1, channels * math.prod(kernel))
    y = columns @ (w if few else stored(jnp.moveaxis(w, 1, -1))).reshape(outputs, -1).T
    return jnp.moveaxis(stored(y.reshape(x.shape[0], *sizes, outputs)), -1, 1)


def by_input(geometry: Geometry, g: Array, w: Array, sizes: Ints) -> Array:
    """The gradient by an input with spatial ``sizes``, where patches are fewer than weights."""
    batch, outputs, *places = g.shape
    channels, kernel = w.shape[1], w.shape[2:]
    columns = stored(jnp.moveaxis(g, 1, -1)).reshape(-1, outputs) @ w.reshape(outputs, -1)
    # An array and no mere shape: under shard_map its type says along which axes it varies.
    x = jnp.broadcast_to(columns[0, 0], (batch, channels, *sizes))
    of = functools.partial(_columns, geometry=geometry, kernel=kernel, channels_first=True)
    (x,) = jax.linear_transpose(of, x)(columns.reshape(batch, *places, channels, math.prod(kernel)))
    return x


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight, for the cotangent ``g`` of the output."""
    batch, outputs, *sizes = g.shape
    few = fewer_than_weights(geometry, batch, sizes, outputs)
    columns = _columns(x, geometry=geometry, kernel=kernel, channels_first=few)
    w = stored(jnp.moveaxis(g, 1, -1)).reshape(-1, outputs).T @ columns.reshape(batch * math.prod(sizes), -1)
    if few:
        return w.reshape(outputs, x.shape[1], *kernel)
    return jnp.moveaxis(stored(w.reshape(outputs, *kernel, x.shape[1])), -1, 1)


def _columns(x: Array, *, geometry: Geometry, kernel: Ints, channels_first: bool) -> Array:
    """The patches, (N, *sizes, C, prod(kernel)) or else (N, *sizes, prod(kernel), C)."""
    sizes = geometry.sizes(x.shape[2:], kernel)
    x = pad(stored(jnp.moveaxis(x, 1, -1))[:, None], [*geometry.padding, (0, 0)])
    parts = taps(x, (*kernel, 1), (*geometry.stride, 1), (*geometry.dilation, 1), (*sizes, x.shape[-1]))
    return jnp.stack([part[:, 0] for part in parts], -1 if channels_first else -2)
