"""Samples of images and volumes at given points."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import sampling
from .foreign import differentiable, foreign
from .multilinear import Like
from .resampling import cubic
from .varying import transposed

Array = jax.Array
Arrays = tuple[Array, ...]

# What the library knows them as.
_TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4}
_PADDINGS = ("zeros", "border", "reflection")


class Form(NamedTuple):
    """The arguments of ``torch.nn.functional.grid_sample`` of these names."""

    mode: str
    padding_mode: str
    align_corners: bool


def grid_sample(form: Form, x: Array, grid: Array) -> Array:
    """The samples (N, C, *out) of ``x`` (N, C, *space) at the points of ``grid`` (N, *out, len(space)), of one type of floats."""
    return _sample(form, x, grid)[0]


class _Tap(NamedTuple):
    """One element along one axis for every point: its index, its weight, and whether it exists."""

    index: Array
    weight: Array
    exists: Array


def _reflect(x: Array, low: float, high: float) -> Array:
    """``x`` mirrored at ``low`` and ``high`` until it lies between them."""
    span = high - low
    if span == 0:
        return jnp.zeros_like(x)
    away = jnp.abs(x - low)
    rest = jnp.fmod(away, span)
    return jnp.where(jnp.floor(away / span) % 2 == 0, rest + low, span - rest + low)


def _inside(form: Form, x: Array, size: int) -> Array:
    """Positions brought among the ``size`` elements, as the padding mode says."""
    if form.padding_mode == "zeros":
        return x
    if form.padding_mode == "reflection":
        x = _reflect(x, 0, size - 1) if form.align_corners else _reflect(x, -0.5, size - 0.5)
    return lax.clamp(jnp.zeros((), x.dtype), jnp.where(jnp.isnan(x), 0, x), jnp.asarray(size - 1, x.dtype))


def _tap(position: Array, weight: Array, size: int) -> _Tap:
    exists = (position >= 0) & (position <= size - 1)
    # The index is a constant of differentiation, and a position that is NaN or out of an integer's range has none.
    index = jnp.where(exists, lax.stop_gradient(position), 0).astype(np.int32)
    return _Tap(index, weight, exists)


def _taps(form: Form, x: Array, size: int) -> list[_Tap]:
    """What the coordinates ``x`` in [-1, 1] are sampled from along an axis of ``size`` elements."""
    # With torch's roundings, which decide what is the nearest of two elements to a point half-way between them.
    position = (x + 1) * ((size - 1) / 2) if form.align_corners else (x + 1) * (size / 2) - 0.5
    if form.mode == "bicubic":
        left = jnp.floor(position)
        places = [_inside(form, left + k, size) for k in (-1, 0, 1, 2)]
        return [_tap(jnp.round(p), w, size) for p, w in zip(places, cubic(position - left), strict=True)]
    position = _inside(form, position, size)
    if form.mode == "nearest":
        return [_tap(jnp.round(position), jnp.ones_like(position), size)]
    left = jnp.floor(position)
    far = position - left
    return [_tap(left, 1 - far, size), _tap(left + 1, far, size)]


def _as_defined(form: Form, x: Array, grid: Array) -> Arrays:
    n, channels, *space = x.shape
    out = grid.shape[1:-1]
    points = grid.reshape(n, math.prod(out), len(space))
    axes = [_taps(form, points[..., -1 - axis], size) for axis, size in enumerate(space)]
    indices, weights = [], []
    for taps in itertools.product(*axes):
        index, weight, exists = taps[0]
        for tap, size in zip(taps[1:], space[1:], strict=True):
            index, weight, exists = index * size + tap.index, weight * tap.weight, exists & tap.exists
        indices.append(jnp.where(exists, index, sampling.MISSING))
        weights.append(weight)
    weighted = form.mode != "nearest"
    weight = jnp.stack(weights, 1) if weighted else jnp.ones((1, 1, 1), x.dtype)
    entries = sampling.Form(planes=True, missing=0.0, weighted=weighted)
    y = sampling.sample(entries, x.reshape(n, channels, math.prod(space)), weight, jnp.stack(indices, 1))
    return (y.reshape(n, channels, *out),)


def _by_image_as_defined(static: tuple[Form, Like], g: Array, grid: Array) -> Arrays:
    form, like = static
    return (transposed(lambda x: _as_defined(form, x, grid)[0], like, g),)


def _by_points_as_defined(form: Form, g: Array, x: Array, grid: Array) -> Arrays:
    return jax.vjp(functools.partial(_as_defined, form, x), grid)[1]((g,))


def _attributes(form: Form) -> dict[str, Any]:
    taps, padding = np.int64(_TAPS[form.mode]), np.int64(_PADDINGS.index(form.padding_mode))
    return {"taps": taps, "padding": padding, "aligned": form.align_corners}


_forward = foreign("jnn_grid_sample", _as_defined, _attributes)
_by_image = foreign("jnn_grid_sample_by_image", _by_image_as_defined, lambda static: _attributes(static[0]))
_by_points = foreign("jnn_grid_sample_by_points", _by_points_as_defined, _attributes)


def _backward(form: Form, gs: Arrays, _: Arrays, arrays: Arrays, wanted: tuple[bool, bool]) -> list[Array | None]:
    x, grid = arrays
    like = Like(x.shape, x.dtype)
    by_points = _by_points if form.mode != "nearest" else lambda *_: (jnp.zeros_like(grid),)
    return [
        _by_image((form, like), *gs, grid)[0] if wanted[0] else None,
        by_points(form, *gs, x, grid)[0] if wanted[1] else None,
    ]


_sample = differentiable(_as_defined, lambda form, *arrays: (_forward(form, *arrays), ()), _backward)
