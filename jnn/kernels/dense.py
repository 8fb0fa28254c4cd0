"""Convolutions with one group, by Winograd's algorithm, as a matmul over patches or as XLA's own, whichever XLA:CPU runs faster."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from . import patches, winograd
from .platform import exact_products
from .taps import Geometry, Ints, count, pad, taps

Array = jax.Array

_FEW_CHANNELS = 4
# Patches of inputs of fewer elements stay in the cache; of these many channels, they make a matmul worth its copies.
_MOST_ELEMENTS = 1 << 18
_MANY_CHANNELS = 64
# Larger ones pay where each of their copies of the input serves so many output channels, in steps of more than 1.
_OUTPUTS_A_COPY = 11
MOST_PATCHES = 1 << 25
# And for gradients by the weight in any steps, of so many output channels and patches up to this size.
_MANY_OUTPUTS = 48
_FEW_PATCHES = 1 << 24
# Winograd's algorithm pays while its tiles stay in the cache, and beyond where this many channels make up for the traffic.
_TILES_IN_CACHE = 1 << 21
_MOST_TILES = 1 << 25
_CHANNELS_BEYOND = 128


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """In three dimensions a sum over kernel depths of convolutions in two: 3 to 15 times as fast, half the error.

    Where channels are few, the depths are channels of one convolution, which has more to sum.
    """
    if by_patches(geometry, x.shape[0], geometry.sizes(x.shape[2:], w.shape[2:]), w.shape):
        return patches.conv(geometry, x, w)
    if _by_winograd(geometry, x, w.shape):
        return winograd.conv(geometry, x, w)
    if x.ndim < 5 or geometry.groups > 1:
        return _conv(geometry, x, w)
    flat, depths, batch = _flat(geometry), [*_depths(geometry, x, w.shape[2:])], x.shape[0]
    kernels = [w[:, :, i] for i in range(w.shape[2])]
    if x.shape[1] < _FEW_CHANNELS:
        depths, kernels = [jnp.concatenate(depths, 1)], [jnp.concatenate(kernels, 1)]
    y = jnp.zeros((), x.dtype)
    for images, kernel in zip(depths, kernels, strict=True):
        y += _conv(flat, images, kernel)
    return jnp.moveaxis(y.reshape(batch, -1, *y.shape[1:]), 1, 2)


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight, for the cotangent ``g`` of the output."""
    weight = (g.shape[1], x.shape[1], *kernel)
    if by_patches(geometry, x.shape[0], g.shape[2:], weight):
        return patches.by_weight(geometry, g, x, kernel)
    if _by_winograd(geometry, x, weight):
        return winograd.by_weight(geometry, g, x)
    if _many_outputs(geometry, x.shape[0], g.shape[2:], weight):
        return patches.by_weight(geometry, g, x, kernel)
    if x.ndim < 5 or geometry.groups > 1:
        return _by_weight(geometry, g, x, kernel)
    flat, slopes = _flat(geometry), _images(g)
    depths = [*_depths(geometry, x, kernel)]
    if x.shape[1] < _FEW_CHANNELS:
        return jnp.stack(jnp.split(_by_weight(flat, slopes, jnp.concatenate(depths, 1), kernel[1:]), kernel[0], 1), 2)
    return jnp.stack([_by_weight(flat, slopes, images, kernel[1:]) for images in depths], 2)


def by_patches(geometry: Geometry, batch: int, sizes: Ints, weight: Ints) -> bool:
    """Whether a matmul over the patches of an output with spatial ``sizes`` is faster: where they are the input or few, or worth it.

    Steps of more than 1 make XLA:CPU's convolutions slow, and each copy of the input that patches make is paid by many outputs.
    """
    outputs, _, *kernel = weight
    offsets = math.prod(kernel)
    if geometry.groups > 1 or offsets == 1 or patches.no_more_than_outputs(batch, sizes, outputs):
        return geometry.groups == 1
    if len(kernel) == 1 or max(geometry.stride) == 1 or patches.elements(batch, sizes, weight) > MOST_PATCHES:
        return False
    return outputs * math.prod(geometry.stride) >= _OUTPUTS_A_COPY * offsets


def _many_outputs(geometry: Geometry, batch: int, sizes: Ints, weight: Ints) -> bool:
    """Whether a gradient by the weight repays its patches, of an output with spatial ``sizes``."""
    few = patches.elements(batch, sizes, weight) <= _FEW_PATCHES
    return geometry.groups == 1 and len(weight) > 3 and weight[0] >= _MANY_OUTPUTS and few


def _flat(geometry: Geometry) -> Geometry:
    """``geometry`` without the depth."""
    stride, padding, dilation, groups = geometry
    return Geometry(stride[1:], padding[1:], dilation[1:], groups)


def _depths(geometry: Geometry, x: Array, kernel: Ints) -> Iterator[Array]:
    """For each kernel depth the images (N * depth, C, H, W) that it meets."""
    depth, *_ = geometry.sizes(x.shape[2:], kernel)
    x = pad(x, [geometry.padding[0], (0, 0), (0, 0)])
    for part in taps(x, (kernel[0], 1, 1), (geometry.stride[0], 1, 1), geometry.dilation, (depth, *x.shape[3:])):
        yield _images(part)


def _images(x: Array) -> Array:
    """(N, C, D, H, W) as (N * D, C, H, W)."""
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])


def _by_winograd(geometry: Geometry, x: Array, weight: Ints) -> bool:
    """Whether kernels of 3 in steps of 1, over images no narrower, go by Winograd's algorithm. It is off for exact products."""
    outputs, channels, *kernel = weight
    steps = {*geometry.stride, *geometry.dilation, geometry.groups}
    if {*kernel} != {3} or steps != {1} or x.ndim < 4 or min(x.shape[2:]) < 3 or not jnp.issubdtype(x.dtype, jnp.inexact):
        return False
    elements = winograd.places(geometry.sizes(x.shape[2:], kernel)) * count(x.shape[:1]) * max(channels, outputs)
    least, most = (_MANY_CHANNELS, _TILES_IN_CACHE) if elements <= _TILES_IN_CACHE else (_CHANNELS_BEYOND, _MOST_TILES)
    return not exact_products() and min(outputs, channels) >= least and elements <= most


def _by_matmul(geometry: Geometry, shape: Ints, kernel: Ints) -> bool:
    """Whether patches are copied out for a matmul.

    They are where that is cheap, and where the kernel is wider than the image: XLA:CPU then takes loops 25 times as slow.
    """
    spatial, channels = shape[2:], shape[1]
    wider = any(d * (k - 1) >= n for n, k, d in zip(spatial, kernel, geometry.dilation))
    places = count((shape[0], *geometry.sizes(spatial, kernel)))
    few = channels >= _MANY_CHANNELS and places * channels < _MOST_ELEMENTS
    return geometry.groups == 1 and (math.prod(kernel) == 1 or wider or few)


def _conv(geometry: Geometry, x: Array, w: Array) -> Array:
    return patches.conv(geometry, x, w) if _by_matmul(geometry, x.shape, w.shape[2:]) else _avoiding_ynnpack(geometry, x, w)


def _by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    if _by_matmul(geometry, x.shape, kernel):
        return patches.by_weight(geometry, g, x, kernel)
    if any((size - 1) * s >= n for size, s, n in zip(g.shape[2:], geometry.stride, x.shape[2:])):
        # One by a kernel wider than the input would run 70 times slower.
        x, geometry = pad(x, geometry.padding), geometry._replace(padding=((0, 0),) * len(kernel))
    return _correlated(geometry, g, x, kernel)


def _avoiding_ynnpack(geometry: Geometry, x: Array, w: Array) -> Array:
    """With a row or a few too many, where those are few, and cut off again.

    XLA:CPU gives convolutions in two dimensions to YNNPACK, unless the output is larger than the input; else to Eigen, whose
    take half the time and up.
    """
    rows, *_ = geometry.sizes(x.shape[2:], w.shape[2:])
    more = x.shape[2] + 1 - rows
    if x.ndim != 4 or not 0 < more <= rows // 4 or geometry.stride[0] > 1 or geometry.groups > 1:
        return _channels_last(geometry, x, w)
    (low, high), columns = geometry.padding
    return _channels_last(geometry._replace(padding=((low, high + more), columns)), x, w)[:, :, :rows]


def _channels_last(geometry: Geometry, x: Array, w: Array) -> Array:
    """XLA's convolution, in the one layout that XLA:CPU runs fast inside loops too, where it adds no transposes itself."""
    n = x.ndim - 2
    spatial = "DHW"[-n:]
    y = lax.conv_general_dilated(
        jnp.moveaxis(x, 1, -1),
        jnp.moveaxis(w, (0, 1), (-1, -2)),
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )
    return jnp.moveaxis(y, -1, 1)


def _correlated(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight as XLA's convolution of ``x`` by ``g``, which sums over the batch as others do over channels."""
    stride, padding, dilation, groups = geometry
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    ends = [r + (size - 1) * s + 1 for r, size, s in zip(reach, g.shape[2:], stride)]
    spatial = "DHW"[-len(kernel) :]
    w = lax.conv_general_dilated(
        jnp.moveaxis(x, 1, -1),
        jnp.moveaxis(g, 1, -1),
        dilation,
        [(low, end - n - low) for (low, _), end, n in zip(padding, ends, x.shape[2:])],
        rhs_dilation=stride,
        dimension_numbers=(f"C{spatial}N", f"I{spatial}O", f"{spatial}NC"),
        batch_group_count=groups,
    )
    return jnp.moveaxis(w, (-1, -2), (0, 1))
