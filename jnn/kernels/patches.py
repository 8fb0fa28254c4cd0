"""Convolutions as a matmul over patches, what each place of the output sees of the input.

Channels come before places, as in the input, so that rows of the image are copied whole and weights are read as they lie. Over
many places each image has a matmul of its own, whose result is the output as it stands; over few, one matmul has them all.
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

# Of so many places up, matmuls by image take a fifth to nine tenths of the time of one matmul and its transpositions.
_MANY_PLACES = 256


def no_more_than_outputs(batch: int, sizes: Ints, outputs: int) -> bool:
    """Whether the places of an output with spatial ``sizes`` are no more than its channels, and so the patches than the weights."""
    return count((batch, *sizes)) <= outputs


def elements(batch: int, sizes: Ints, weight: Ints) -> int:
    """Of the patches of an output with spatial ``sizes``."""
    return count((batch, *sizes)) * math.prod(weight[1:])


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """The convolution."""
    kernel, n = w.shape[2:], w.ndim
    images = _by_image(x.shape[0], geometry.sizes(x.shape[2:], kernel), w.shape[0])
    columns = _columns(x, geometry=geometry, kernel=kernel, images_first=images)
    if images:
        return _products(_repeated(w, x.shape[0]), columns, range(2, n + 1), range(1, n), images=True)
    return jnp.swapaxes(stored(_products(w, columns, range(1, n), range(n - 1)), always=True), 0, 1)


def by_input(geometry: Geometry, g: Array, w: Array, sizes: Ints) -> Array:
    """The gradient by an input with spatial ``sizes``."""
    images, places = _by_image(g.shape[0], g.shape[2:], g.shape[1]), g.ndim - 1
    if images:
        columns = _products(_repeated(w, g.shape[0]), g, [1], [1], images=True)
    elif no_more_than_outputs(g.shape[0], g.shape[2:], g.shape[1]):
        columns = jnp.moveaxis(stored(_products(g, w, [1], [0]), always=True), range(places), range(-places, 0))
    else:
        columns = _products(w, stored(jnp.swapaxes(g, 0, 1)), [0], [0])
    # An array and no mere shape: under shard_map its type says along which axes it varies.
    x = jnp.broadcast_to(columns[(0,) * columns.ndim], (g.shape[0], w.shape[1], *sizes))
    of = functools.partial(_columns, geometry=geometry, kernel=w.shape[2:], images_first=images)
    (x,) = jax.linear_transpose(of, x)(columns)
    return x


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight, for the cotangent ``g`` of the output.

    XLA:CPU transposes the right one of two factors that are summed along their rows: the smaller one is put there.
    """
    outputs, channels, n = g.shape[1], x.shape[1], len(kernel)
    # A matmul by image gives as many weights for each.
    if math.prod(kernel) == 1 and 2 * outputs * channels <= count(g.shape[2:]) * (outputs + channels):
        columns = _columns(x, geometry=geometry, kernel=kernel, images_first=True)
        if outputs > channels:
            return _products(g, columns, range(2, g.ndim), range(2 + n, columns.ndim), images=True).sum(0)
        return jnp.moveaxis(_products(columns, g, range(2 + n, columns.ndim), range(2, g.ndim), images=True).sum(0), -1, 0)
    few, g = no_more_than_outputs(g.shape[0], g.shape[2:], outputs), stored(jnp.swapaxes(g, 0, 1))
    columns = _columns(x, geometry=geometry, kernel=kernel, images_first=False)
    if few:
        return _products(g, columns, range(1, g.ndim), range(1 + n, columns.ndim))
    return jnp.moveaxis(stored(_products(columns, g, range(1 + n, columns.ndim), range(1, g.ndim)), always=True), -1, 0)


def _by_image(batch: int, sizes: Ints, outputs: int) -> bool:
    """Whether each image has a matmul of its own. The weight, repeated for each, is then no larger than the patches."""
    return batch != 1 and count(sizes) >= max(_MANY_PLACES, outputs)


def _repeated(w: Array, batch: int) -> Array:
    return jnp.broadcast_to(w, (batch, *w.shape))


def _products(a: Array, b: Array, over_a: Ints, over_b: Ints, images: bool = False) -> Array:
    """Summed over axes of each; those of an image with itself alone where ``images`` are the first axis of both."""
    return lax.dot_general(a, b, ((tuple(over_a), tuple(over_b)), ((0,), (0,)) if images else ((), ())))


def _columns(x: Array, *, geometry: Geometry, kernel: Ints, images_first: bool) -> Array:
    """The patches, (N, C, *kernel, *sizes) or else (C, *kernel, N, *sizes)."""
    sizes, n = geometry.sizes(x.shape[2:], kernel), len(kernel)
    x = pad(x, geometry.padding)
    if not images_first:
        x = jnp.swapaxes(x, 0, 1)
    # Axis by axis: fewer slices than kernel offsets. Those of the last come first, which others then copy by rows.
    for axis in reversed(range(n)):
        stride, stop = geometry.stride[axis], (sizes[axis] - 1) * geometry.stride[axis] + 1
        starts = range(0, kernel[axis] * geometry.dilation[axis], geometry.dilation[axis])
        at = x.ndim - n + axis
        x = jnp.stack([lax.slice_in_dim(x, a, a + stop, stride, at) for a in starts], 1 + images_first)
    return stored(x)
