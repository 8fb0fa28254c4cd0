"""Convolutions with few input channels a group, as elementwise work over these channels and kernel offsets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from .sums import sums
from .taps import Geometry, Ints, pad, taps

Array = jax.Array


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """A sum over channels and kernel offsets of shifted inputs times a number by output channel."""
    groups, kernel, sizes = geometry.groups, w.shape[2:], geometry.sizes(x.shape[2:], w.shape[2:])
    factors = w.reshape(groups, -1, w.shape[1] * math.prod(kernel), *[1] * len(kernel))
    y = jnp.zeros((), x.dtype)
    for i, part in enumerate(_parts(geometry, x, kernel, sizes)):
        y += part * factors[None, :, :, i]
    return y.reshape(x.shape[0], w.shape[0], *sizes)


def by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by the weight: sums over shifted inputs times ``g``, all of them in one pass."""
    per_group, sizes = x.shape[1] // geometry.groups, g.shape[2:]
    slopes = g.reshape(g.shape[0], geometry.groups, -1, *sizes)
    # By image first, and so exact to more digits than one long sum.
    by_image = sums([part * slopes for part in _parts(geometry, x, kernel, sizes)], range(3, slopes.ndim))
    return jnp.stack(by_image, -1).sum(0).reshape(g.shape[1], per_group, *kernel)


def _parts(geometry: Geometry, x: Array, kernel: Ints, sizes: Ints) -> Iterator[Array]:
    """For each input channel of a group, for each kernel offset, what they meet: (N, groups, 1, *sizes)."""
    x = pad(x, geometry.padding)
    x = x.reshape(x.shape[0], geometry.groups, -1, 1, *x.shape[2:])
    for channel in range(x.shape[2]):
        yield from taps(x[:, :, channel], kernel, geometry.stride, geometry.dilation, sizes)
