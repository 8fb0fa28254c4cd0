"""How convolutions are lowered. Shapes are torch's: x (N, C, *S), w (O, C / groups, *K), transposed w (C, O / groups, *K)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import dtypes
from .platform import native

Array = jax.Array
Ints = Sequence[int]
Pads = Sequence[tuple[int, int]]

# XLA:CPU expands a grouped convolution into a dense or a scalar one; up to these numbers, writing it out is faster.
_MOST_TAPS = 64
_MOST_GROUPS = 32
_FEW_CHANNELS = 4


def conv(x: Array, w: Array, *, stride: Ints, padding: Pads, dilation: Ints, groups: int = 1) -> Array:
    """The cross-correlation of ``x``, padded by zeros, with ``w``."""
    if native():
        return _native(x, w, stride, padding, dilation, groups)
    if groups == 1:
        return _dense(x, w, stride, padding, dilation)
    if w.shape[1] == 1 and math.prod(w.shape[2:]) <= _MOST_TAPS:
        return _depthwise(x, w, stride, padding, dilation)
    if groups <= _MOST_GROUPS:
        pairs = zip(jnp.split(x, groups, axis=1), jnp.split(w, groups, axis=0))
        return jnp.concatenate([_dense(part, kernel, stride, padding, dilation) for part, kernel in pairs], axis=1)
    return _channels_last(x, w, stride, padding, dilation, groups)


def conv_transpose(x: Array, w: Array, *, stride: Ints, padding: Ints, output_padding: Ints, dilation: Ints, groups: int = 1) -> Array:
    """The transpose of ``conv`` in its input: every element of ``x`` adds its multiple of ``w`` to the output."""
    in_channels, per_group, *kernel = w.shape
    w = jnp.swapaxes(w.reshape(groups, in_channels // groups, per_group, *kernel), 1, 2).reshape(-1, in_channels // groups, *kernel)
    if not native() and max(stride) > 1 and max(dilation) == 1:
        sizes = [(n - 1) * s - 2 * p + k + o for n, s, p, k, o in zip(x.shape[2:], stride, padding, kernel, output_padding)]
        return _subpixel(x, w, stride, padding, sizes, groups)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    pads = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding)]
    w = jnp.flip(w, range(2, w.ndim))
    if native():
        return _native(x, w, (1,) * len(kernel), pads, dilation, groups, stride)
    if max(stride) > 1 or min(min(pad) for pad in pads) < 0:
        x, pads = _pad(x, pads, stride), [(0, 0)] * len(kernel)
    return conv(x, w, stride=(1,) * len(kernel), padding=pads, dilation=dilation, groups=groups)


def taps(x: Array, kernel: Ints, stride: Ints, dilation: Ints, sizes: Ints) -> Iterator[Array]:
    """For each kernel offset in row-major order, the elements of ``x`` (*, *S) that it meets: arrays (*, *sizes)."""
    outer = x.shape[: x.ndim - len(kernel)]
    for offset in np.ndindex(*kernel):
        start = [o * d for o, d in zip(offset, dilation)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, stride)]
        yield lax.slice(x, [0] * len(outer) + start, [*outer, *stop], [1] * len(outer) + list(stride))


def out_sizes(spatial: Ints, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints) -> list[int]:
    """The number of places at which a dilated kernel fits into the padded input, by dimension."""
    return [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation)]


def _pad(x: Array, padding: Pads, spread: Ints | None = None) -> Array:
    """Zeros around the spatial dimensions, a negative number crops; and between, so that neighbours come to be ``spread`` apart."""
    spread = spread or (1,) * len(padding)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 2 + [(*pad, s - 1) for pad, s in zip(padding, spread)])


def _native(x: Array, w: Array, stride: Ints, padding: Pads, dilation: Ints, groups: int, input_dilation: Ints | None = None) -> Array:
    return lax.conv_general_dilated(x, w, stride, padding, lhs_dilation=input_dilation, rhs_dilation=dilation, feature_group_count=groups)


def _dense(x: Array, w: Array, stride: Ints, padding: Pads, dilation: Ints) -> Array:
    """One group. In three dimensions a sum over kernel depths of convolutions in two: 3 to 15 times as fast, half the error.

    Where channels are few, the depths are channels of one convolution, which has more to sum.
    """
    if x.ndim < 5 or not x.size:
        return _channels_last(x, w, stride, padding, dilation, 1)
    (batch, channels, *spatial), deep = x.shape, w.shape[2]
    depth, *_ = out_sizes(spatial, w.shape[2:], stride, padding, dilation)
    x = _pad(x, [padding[0], (0, 0), (0, 0)])
    layers = [*taps(x, (deep, 1, 1), (stride[0], 1, 1), dilation, (depth, *spatial[1:]))]
    kernels = [w[:, :, i] for i in range(deep)]
    if channels < _FEW_CHANNELS:
        layers, kernels = [jnp.concatenate(layers, 1)], [jnp.concatenate(kernels, 1)]
    y = jnp.zeros((), x.dtype)
    for layer, kernel in zip(layers, kernels, strict=True):
        images = jnp.moveaxis(layer, 2, 1).reshape(batch * depth, -1, *spatial[1:])
        y += _channels_last(images, kernel, stride[1:], padding[1:], dilation[1:], 1)
    return jnp.moveaxis(y.reshape(batch, depth, *y.shape[1:]), 1, 2)


def _channels_last(x: Array, w: Array, stride: Ints, padding: Pads, dilation: Ints, groups: int) -> Array:
    """The native convolution in the one layout that XLA:CPU runs fast inside loops too, where it adds no transposes itself."""
    n = x.ndim - 2
    spatial = "DHW"[-n:]
    sizes = out_sizes(x.shape[2:], w.shape[2:], stride, padding, dilation)
    if any((size - 1) * s >= n_in for size, s, n_in in zip(sizes, stride, x.shape[2:])):
        # The weight gradient is a convolution by the output; one wider than the input would run 70 times slower.
        x, padding = _pad(x, padding), [(0, 0)] * n
    y = lax.conv_general_dilated(
        jnp.moveaxis(x, 1, -1),
        jnp.transpose(w, (*range(2, n + 2), 1, 0)),
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )
    return jnp.moveaxis(y, -1, 1)


def _depthwise(x: Array, w: Array, stride: Ints, padding: Pads, dilation: Ints) -> Array:
    """One input channel a group: a sum over kernel offsets of shifted inputs times a number by channel."""
    (batch, channels, *spatial), kernel, ones = x.shape, w.shape[2:], (1,) * (x.ndim - 2)
    dtype = dtypes.accumulator(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
    sizes = out_sizes(spatial, kernel, stride, padding, dilation)
    x_wide = _pad(x.astype(dtype), padding)[:, :, None]
    by_tap = jnp.moveaxis(w.astype(dtype).reshape(channels, -1, math.prod(kernel)), -1, 0)
    y = jnp.zeros((batch, channels, by_tap.shape[2], *sizes), dtype)
    for part, factor in zip(taps(x_wide, kernel, stride, dilation, sizes), by_tap):
        y += part * factor.reshape(1, *factor.shape, *ones)
    return y.reshape(batch, w.shape[0], *sizes).astype(x.dtype)


def _subpixel(x: Array, w: Array, stride: Ints, padding: Ints, sizes: Ints, groups: int) -> Array:
    """A strided transposed convolution as a dense one that gives each of the ``prod(stride)`` interleaved outputs its channel.

    Nothing is multiplied by inserted zeros, forward or backward. With kernel offset k = q * stride + r, output
    t * stride + r is the sum over q of x[t - q] w[q * stride + r].
    """
    n, (out_channels, in_channels, *kernel) = len(stride), w.shape
    quotients = [-(-k // s) for k, s in zip(kernel, stride)]
    w = _pad(w, [(0, q * s - k) for q, s, k in zip(quotients, stride, kernel)])
    w = w.reshape(out_channels, in_channels, *(m for pair in zip(quotients, stride) for m in pair))
    w = jnp.transpose(w, (0, *range(3, 2 * n + 2, 2), 1, *range(2, 2 * n + 2, 2))).reshape(-1, in_channels, *quotients)
    full = [(q - 1, q - 1) for q in quotients]
    y = conv(x, jnp.flip(w, range(2, n + 2)), stride=(1,) * n, padding=full, dilation=(1,) * n, groups=groups)
    y = y.reshape(x.shape[0], out_channels, *stride, *y.shape[2:])
    y = jnp.transpose(y, (0, 1, *(axis for d in range(n) for axis in (2 + n + d, 2 + d))))
    y = y.reshape(x.shape[0], out_channels, *(y.shape[2 + 2 * d] * s for d, s in enumerate(stride)))
    return _pad(y, [(-p, p + size - full_size) for p, size, full_size in zip(padding, sizes, y.shape[2:])])
