"""Resampling along an axis: each output is a weighted sum of a few inputs, whose indices and weights are known."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import takes
from .multilinear import Like, multilinear
from .sampling import MISSING, Form, sample
from .varying import transposed

Array = jax.Array

# Slices that an axis is resampled by at most; with more, a gather compiles faster.
_MOST_SLICES = 32
# Axes are one where that takes so many entries at most, and so many times those of one after another: 0.3 to 1 of the time.
_MOST_JOINED, _JOINED = 4096, 1.5


class Taps:
    """Of an axis of ``inputs``: those that each output is a sum of and their weights, (outputs, taps) both. Equal to itself only."""

    def __init__(self, inputs: int, index: np.ndarray, weights: np.ndarray) -> None:
        self.inputs, self.index, self.weights = inputs, index, weights

    @functools.cached_property
    def copied(self) -> bool:
        """Whether each output is an input."""
        return self.index.shape[1] == 1 and bool((self.weights == 1).all())

    @functools.cached_property
    def repeated(self) -> bool:
        """Whether each input is so many outputs, in order."""
        times = len(self.index) // self.inputs if self.inputs else 0
        return self.copied and times > 0 and np.array_equal(self.index[:, 0], np.arange(len(self.index)) // times)

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


class _Joined(Taps):
    """Those of neighbouring axes as one."""

    def __init__(self, axes: tuple[Taps, ...]) -> None:
        self.axes = axes

        def pairs(join: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return join(a[:, None, :, None], b[None, :, None]).reshape(len(a) * len(b), -1)

        inputs, index, weights = axes[0].inputs, axes[0].index, axes[0].weights
        for taps in axes[1:]:
            index, weights = pairs(np.add, index * taps.inputs, taps.index), pairs(np.multiply, weights, taps.weights)
            inputs *= taps.inputs
        super().__init__(inputs, index, weights)

    @functools.cached_property
    def adjoint(self) -> Taps:
        return _joined(tuple(t.adjoint for t in self.axes))


_joined = functools.lru_cache(1024)(_Joined)


class _Steps(NamedTuple):
    """Taps that, phase by phase, step through an axis and stop at its ends: their offsets and weights by phase."""

    stride: int
    offsets: np.ndarray
    weights: np.ndarray


def cubic(t: Any) -> list[Any]:
    """The weights of the four neighbours of a point at ``t`` in [0, 1] between the second and the third: Keys, a = -3/4."""
    a = -0.75

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def resample(x: Array, axis: int, taps: Taps) -> Array:
    """``y_i = sum_t weights[i, t] x[index[i, t]]`` along ``axis``. A tap of weight 0 is not read: it may be infinite.

    The gradient is a resampling too, where JAX would scatter, or pad and add each tap's.
    """
    return _resample((axis, taps), x)


def resample_space(x: Array, taps: Sequence[Taps]) -> Array:
    """:func:`resample` along each of the last ``len(taps)`` axes."""
    copied = all(t.copied for t in taps)
    if takes(x) and copied and not all(t.repeated for t in taps):
        return _copy(tuple(taps), x)
    if takes(x) and not copied and are_small(taps):
        return resample_joined(x, taps)
    for axis, own in reversed(list(enumerate(taps, x.ndim - len(taps)))):
        x = resample(x, axis, own)
    return x


def resample_joined(x: Array, taps: Sequence[Taps]) -> Array:
    """:func:`resample_space`, of all axes at once."""
    first, outputs = x.ndim - len(taps), (len(t.index) for t in taps)
    y = resample(x.reshape(*x.shape[:first], math.prod(x.shape[first:])), first, _joined(tuple(taps)))
    return y.reshape(*x.shape[:first], *outputs)


def are_small(taps: Sequence[Taps]) -> bool:
    """Whether the axes are small enough to be one."""
    joined, apart, outer = math.prod(t.index.size for t in taps), 0, 1
    for i, t in enumerate(taps):
        apart += outer * t.index.size * math.prod(len(later.index) for later in taps[i + 1 :])
        outer *= t.inputs
    return len(taps) > 1 and 0 < joined <= min(_MOST_JOINED, _JOINED * apart)


def _copied(taps: tuple[Taps, ...], x: Array) -> Array:
    """Along several axes at once."""
    first = x.ndim - len(taps)
    index = functools.reduce(lambda index, t: index[..., None] * t.inputs + t.index[:, 0], taps, np.zeros((), int))
    planes = x.reshape(1, math.prod(x.shape[:first]), math.prod(x.shape[first:]))
    form = Form(planes=True, missing=0.0, weighted=False)
    y = sample(form, planes, jnp.ones((1, 1, 1), x.dtype), jnp.asarray(index.reshape(1, 1, -1), np.int32))
    return y.reshape(*x.shape[:first], *index.shape)


def _copied_back(taps: tuple[Taps, ...], g: Array) -> Array:
    like = Like((*g.shape[: g.ndim - len(taps)], *(t.inputs for t in taps)), g.dtype)
    return transposed(functools.partial(_copied, taps), like, g)


def _value(static: tuple[int, Taps], x: Array) -> Array:
    axis, taps = static
    outputs = len(taps.index)
    if not taps.inputs:
        return jnp.zeros((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), x.dtype)
    if taps.repeated:
        return jnp.repeat(x, outputs // taps.inputs, axis) if outputs > taps.inputs else x
    if takes(x):
        return _by_sampling(x, axis, taps)
    if taps.copied:
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


_copy = multilinear(_copied, lambda taps, g, _: _copy_back(taps, g), by_sample=lambda taps: taps)
_copy_back = multilinear(_copied_back, lambda taps, g, _: _copy(taps, g), by_sample=lambda taps: taps)
_resample = multilinear(
    _value,
    lambda static, g, _: _resample((static[0], static[1].adjoint), g),
    by_sample=lambda static: (static[0] + 1, static[1]),
)
