"""Resampling along an axis: each output is a weighted sum of a few inputs, whose indices and weights are known."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import takes
from .multilinear import multilinear
from .sampling import MISSING, Form, sample

Array = jax.Array

# Slices that an axis is resampled by at most; with more, a gather compiles faster.
_MOST_SLICES = 32


class Taps:
    """Of an axis of ``inputs``: those that each output is a sum of and their weights, (outputs, taps) both. Equal to itself only."""

    def __init__(self, inputs: int, index: np.ndarray, weights: np.ndarray) -> None:
        self.inputs, self.index, self.weights = inputs, index, weights

    @functools.cached_property
    def adjoint(self) -> Taps:
        """Those of the gradient: for each input the outputs that it is in, all of a window."""
        outputs, taps = self.index.shape
        read = self.weights.ravel() != 0
        output, index, weights = (a.ravel()[read] for a in (np.arange(outputs).repeat(taps), self.index, self.weights))
        first, last = np.full(self.inputs, outputs - 1), np.zeros(self.inputs, int)
        np.minimum.at(first, index, output)
        np.maximum.at(last, index, output)
        window = first[:, None] + np.arange((last - first).max(initial=0) + 1)
        factors = np.zeros(window.shape, weights.dtype)
        np.add.at(factors, (index, output - first[index]), weights)
        found = Taps(outputs, np.minimum(window, outputs - 1), factors)
        found.adjoint = self
        return found

    @functools.cached_property
    def steps(self) -> _Steps | None:
        """The taps as steps, where they are: in the middle, and at the ends to the same sums."""
        outputs, taps = self.index.shape
        count = max(1, math.gcd(self.inputs, outputs))
        phases, stride = outputs // count, self.inputs // count
        if not outputs or phases * taps > _MOST_SLICES:
            return None
        index, weights = self.index.reshape(count, phases, taps), self.weights.reshape(count, phases, taps)
        places = stride * np.arange(count)[:, None, None]
        offsets = (index - places)[count // 2]
        reads = np.clip(places + offsets, 0, self.inputs - 1)[..., None, :] == index[..., None]
        if (weights[~reads.any(-1)] != 0).any():
            return None
        first = reads & (reads.cumsum(-1) == 1)
        return _Steps(stride, offsets, np.sum(first * weights[..., None], -2, dtype=weights.dtype))


class _Steps(NamedTuple):
    """Taps that, phase by phase, step through an axis and stop at its ends: their offsets and weights by phase."""

    stride: int
    offsets: np.ndarray
    weights: np.ndarray


def resample(x: Array, axis: int, taps: Taps) -> Array:
    """``y_i = sum_t weights[i, t] x[index[i, t]]`` along ``axis``. A tap of weight 0 is not read: it may be infinite.

    The gradient is a resampling too, where JAX would scatter, or pad and add each tap's.
    """
    return _resample((axis, taps), x)


def _value(static: tuple[int, Taps], x: Array) -> Array:
    axis, taps = static
    outputs, count = taps.index.shape
    if not taps.inputs:
        return jnp.zeros((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), x.dtype)
    times, copied = outputs // taps.inputs, count == 1 and (taps.weights == 1).all()
    if copied and times and np.array_equal(taps.index[:, 0], np.arange(outputs) // times):
        return jnp.repeat(x, times, axis) if times > 1 else x
    if takes(x):
        return _by_sampling(x, axis, taps)
    if copied:
        return jnp.take(x, taps.index[:, 0], axis, mode="clip")
    return (_gather if taps.steps is None else _by_slices)(x, axis, taps).astype(x.dtype)


def _gather(x: Array, axis: int, taps: Taps) -> Array:
    weights = taps.weights.reshape((1,) * axis + taps.weights.shape + (1,) * (x.ndim - axis - 1))
    taken = jnp.take(x, taps.index, axis, mode="clip")
    return jnp.sum(jnp.where(weights == 0, 0, taken * weights), axis + 1)


def _by_sampling(x: Array, axis: int, taps: Taps) -> Array:
    """The last axis as planes that share their taps, another as rows."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    index = jnp.asarray(np.where(taps.weights == 0, MISSING, taps.index), np.int32)
    weights = jnp.asarray(taps.weights, x.dtype)
    outer, inner = math.prod(before), math.prod(after)
    if inner == 1:
        y = sample(Form(planes=True, missing=0.0), x.reshape(1, outer, taps.inputs), weights.T[None], index.T[None])
    else:
        each = (jnp.broadcast_to(a, (outer, *a.shape)) for a in (weights, index))
        y = sample(Form(planes=False, missing=0.0), x.reshape(outer, taps.inputs, inner), *each)
    return y.reshape(*before, len(taps.index), *after)


def _by_slices(x: Array, axis: int, taps: Taps) -> Array:
    """Slices, which XLA fuses where it would gather element by element."""
    steps = taps.steps
    assert steps is not None
    count, phases, _ = steps.weights.shape
    before = max(0, -steps.offsets.min())
    after = max(0, (count - 1) * steps.stride + steps.offsets.max() - (x.shape[axis] - 1))
    x = jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)], "edge")
    sums = []
    for phase in range(phases):
        total = jnp.zeros((), x.dtype)
        for offset, weight in zip(steps.offsets[phase], steps.weights[:, phase].T, strict=True):
            part = lax.slice_in_dim(x, before + offset, before + offset + (count - 1) * steps.stride + 1, steps.stride, axis)
            factor = np.expand_dims(weight, [a for a in range(x.ndim) if a != axis])
            total = total + (part * factor if weight.all() else jnp.where(factor == 0, 0, part * factor))
        sums.append(total)
    return jnp.stack(sums, axis + 1).reshape(*x.shape[:axis], count * phases, *x.shape[axis + 1 :])


_resample = multilinear(
    _value,
    lambda static, g, _: _resample((static[0], static[1].adjoint), g),
    by_sample=lambda static: (static[0] + 1, static[1]),
)
