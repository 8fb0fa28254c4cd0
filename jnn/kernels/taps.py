"""What the forms of a convolution share: its geometry, and what of the input each offset of the kernel meets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Ints = Sequence[int]
Pads = Sequence[tuple[int, int]]


class Geometry(NamedTuple):
    """What of a convolution is no array. By spatial dimension, but for ``groups``; a negative padding crops."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def sizes(self, spatial: Ints, kernel: Ints) -> list[int]:
        """Those of the output."""
        return out_sizes(spatial, kernel, self.stride, self.padding, self.dilation)


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


def count(sizes: Iterable[Any]) -> int:
    """Their product; a size that ``jax.export`` leaves open counts as one."""
    return math.prod(n for n in sizes if isinstance(n, int))


def numbers(*sizes: Any) -> Any:
    """What makes arrays of numbers from sizes: NumPy or, where one is left open, JAX."""
    return np if all(isinstance(n, int) for n in sizes) else jnp


def pad(x: Array, padding: Pads, spread: Ints | None = None) -> Array:
    """Zeros around the spatial dimensions, a negative number crops; and between, so that neighbours come to be ``spread`` apart."""
    spread = spread or (1,) * len(padding)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 2 + [(*ends, s - 1) for ends, s in zip(padding, spread)])


def swapped(w: Array, groups: int) -> Array:
    """The weight (O, C / groups, *K) of a convolution with its channels as its gradient by the input has them, (C, O / groups, *K)."""
    outputs, per_group, *kernel = w.shape
    return jnp.swapaxes(w.reshape(groups, outputs // groups, per_group, *kernel), 1, 2).reshape(-1, outputs // groups, *kernel)


def flipped(w: Array) -> Array:
    """``w`` with its kernel offsets in reverse."""
    return jnp.flip(w, range(2, w.ndim))
