"""Convolutions with kernels of 3 in steps of 1 by Winograd's F(2, 3): along each axis four products give two outputs, not six.

The input is cut into overlapping tiles of four places an axis, the output into tiles of two. What stands at one place of all
tiles makes one matmul over channels. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .stored import stored
from .taps import Geometry, Ints, Pads

Array = jax.Array


def conv(geometry: Geometry, x: Array, w: Array) -> Array:
    """The convolution; ``w`` is (O, C, 3, ...)."""
    sizes, n = geometry.sizes(x.shape[2:], w.shape[2:]), w.ndim - 2
    tiles = _tiles(sizes)
    products = jnp.einsum("ptc,poc->pto", _of_input(geometry, x, tiles), _of_weight(w))
    y = products.reshape(*[4] * n, x.shape[0], *tiles, w.shape[0])
    y = _joined(y, n).reshape(x.shape[0], *(2 * m for m in tiles), w.shape[0])
    return jnp.moveaxis(stored(y[:, *(slice(size) for size in sizes)]), -1, 1)


def by_weight(geometry: Geometry, g: Array, x: Array) -> Array:
    """The gradient by the weight, for the cotangent ``g`` of the output."""
    n, tiles = g.ndim - 2, _tiles(g.shape[2:])
    g = _padded(stored(jnp.moveaxis(g, 1, -1)), [(0, 2 * m - size) for m, size in zip(tiles, g.shape[2:])])
    slopes = _by_place(g, tiles, 2, lambda a, b: (a, a + b, a - b, -b))
    w = jnp.einsum("pto,ptc->poc", slopes, _of_input(geometry, x, tiles))
    w = stored(jnp.einsum("pk,poc->koc", _weight_places(n, w.dtype), w), always=True)
    return jnp.moveaxis(w, 0, -1).reshape(*w.shape[1:], *[3] * n)


def places(sizes: Ints) -> int:
    """How many the tiles of an output with these spatial sizes have in all."""
    return math.prod(4 * m for m in _tiles(sizes))


def _tiles(sizes: Ints) -> list[int]:
    return [-(-size // 2) for size in sizes]


def _of_input(geometry: Geometry, x: Array, tiles: Ints) -> Array:
    """(4 ** n, tiles, C)."""
    ends = [(low, 2 * m + 2 - size - low) for m, size, (low, _) in zip(tiles, x.shape[2:], geometry.padding)]
    x = _padded(stored(jnp.moveaxis(x, 1, -1)), ends)
    return _by_place(x, tiles, 4, lambda a, b, c, d: (a - c, b + c, c - b, b - d))


def _padded(x: Array, padding: Pads) -> Array:
    """``x`` (N, *S, C) with zeros around, a negative number crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*ends, 0) for ends in padding), (0, 0, 0)])


def _joined(y: Array, n: int) -> Array:
    """(N, tile, 2, tile, 2, ..., O) from (4, ..., 4, N, *tiles, O)."""
    if not n:
        return y
    a, b, c, d = y
    return jnp.stack([_joined(a + b + c, n - 1), _joined(b - c - d, n - 1)], y.ndim - 2 * n)


def _of_weight(w: Array) -> Array:
    """(4 ** n, O, C)."""
    return jnp.einsum("pk,ock->poc", _weight_places(w.ndim - 2, w.dtype), w.reshape(*w.shape[:2], -1))


def _weight_places(n: int, dtype: Any) -> Array:
    """The matrix that takes the elements of a kernel, (3 ** n), to the places of a tile, (4 ** n)."""
    along = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return jnp.asarray(functools.reduce(np.kron, [along] * n), dtype)


def _by_place(x: Array, tiles: Ints, width: int, combine: Callable[..., Sequence[Array]]) -> Array:
    """(4 ** n, tiles, C) from (N, *S, C): along each axis ``combine`` gives four of the ``width`` places of each tile."""
    for i, m in enumerate(tiles):
        x = stored(jnp.stack(combine(*(lax.slice_in_dim(x, a, a + 2 * m - 1, 2, 2 * i + 1) for a in range(width))), i))
    return x.reshape(4 ** len(tiles), -1, x.shape[-1])
