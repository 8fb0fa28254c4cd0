"""Convolutions with one input channel a group, as elementwise work over kernel offsets."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from .sums import sums
from .taps import Geometry, Ints, pad, taps

Array = jax.Array


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """A sum over kernel offsets of shifted inputs times a number by channel."""
    (batch, channels, *spatial), kernel, ones = x.shape, w.shape[2:], (1,) * (x.ndim - 2)
    sizes = geometry.sizes(spatial, kernel)
    by_tap = jnp.moveaxis(w.reshape(channels, -1, math.prod(kernel)), -1, 0)
    y = jnp.zeros((), x.dtype)
    for part, factor in zip(taps(pad(x, geometry.padding)[:, :, None], kernel, geometry.stride, geometry.dilation, sizes), by_tap):
        y += part * factor.reshape(1, *factor.shape, *ones)
    return y.reshape(batch, w.shape[0], *sizes)


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight: sums over shifted inputs times ``g``, all of them in one pass."""
    (batch, channels), sizes = x.shape[:2], g.shape[2:]
    g = g.reshape(batch, channels, -1, *sizes)
    parts = taps(pad(x, geometry.padding)[:, :, None], kernel, geometry.stride, geometry.dilation, sizes)
    # By image first, and so exact to more digits than one long sum.
    by_image = sums([part * g for part in parts], range(3, g.ndim))
    return jnp.stack(by_image, -1).sum(0).reshape(-1, 1, *kernel)
