"""Resampling along an axis: each output is a weighted sum of a few inputs, whose indices and weights are known."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .multilinear import multilinear

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

    The gradient is a resampling too, where JAX would scatter or pad and add each tap's: 0.15 of its time.
    """
    return _resample((axis, taps), x)


def _value(static: tuple[int, Taps], x: Array) -> Array:
    axis, taps = static
    outputs, count = taps.index.shape
    if not taps.inputs:
        return jnp.zeros((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), x.dtype)
    if count > 1 or (taps.weights != 1).any():
        sums = _gather(x, axis, taps) if taps.steps is None else _by_slices(x, axis, taps.steps)
        return sums.astype(x.dtype)
    index, times = taps.index[:, 0], outputs // taps.inputs
    if times and np.array_equal(index, np.arange(outputs) // times):
        return jnp.repeat(x, times, axis) if times > 1 else x
    return jnp.take(x, index, axis, mode="clip")


def _gather(x: Array, axis: int, taps: Taps) -> Array:
    weights = taps.weights.reshape((1,) * axis + taps.weights.shape + (1,) * (x.ndim - axis - 1))
    taken = jnp.take(x, taps.index, axis, mode="clip")
    return jnp.sum(jnp.where(weights == 0, 0, taken * weights), axis + 1)


def _by_slices(x: Array, axis: int, steps: _Steps) -> Array:
    """Slices, which XLA fuses where it would gather element by element."""
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


_resample = multilinear(_value, lambda static, g, _: _resample((static[0], static[1].adjoint), g))
