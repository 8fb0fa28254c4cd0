"""The forward algorithm of connectionist temporal classification, as one loop over the frames."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import dtypes
from ..core.derivatives import straight_through
from ..core.function import function
from .foreign import Arrays, differentiable, foreign
from .varying import alike

Array = jax.Array

# The logarithm of probability 0. It is finite so that differences of two of them are 0 and not NaN; what ends below half
# of it was impossible.
_ZERO = -1e30


@jax.custom_jvp
def _log_add(a: Array, b: Array) -> Array:
    """``log(exp(a) + exp(b))`` of finite numbers, with an error of an ulp of 1, which sums of logarithms of probabilities have anyway.

    ``jnp.logaddexp`` looks for infinite ones, and its ``log1p`` takes XLA:CPU three times as long.
    """
    return jnp.maximum(a, b) + jnp.log(1 + jnp.exp(-jnp.abs(a - b)))


@_log_add.defjvp
def _log_add_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    total = _log_add(*primals)
    moved = [jnp.exp(x - total) * t for x, t in zip(primals, tangents, strict=True)]
    return total, moved[0] + moved[1]


def _live(frames: int, used: Array) -> Array:
    """Which frames of each sequence count, (T, N)."""
    return jnp.arange(frames)[:, None] < used[None]


def _as_defined(blank: int, log_probs: Array, labels: Array, used: Array, lengths: Array) -> Arrays:
    """The log of the summed probability of all alignments, (N,), at most about ``_ZERO`` where there is none.

    ``log_probs`` (T, N, C) of whose frames ``used`` (N,) count, ``labels`` (N, S) of which ``lengths`` (N,) count. After each
    frame ``gap[:, s]`` is the log-probability of having emitted s labels and then a blank, and ``label[:, s]`` of having
    emitted s + 1 with no blank since.
    """
    n, length = labels.shape
    live = _live(len(log_probs), used)
    log_probs = jnp.maximum(log_probs, _ZERO)
    emitted = jnp.take_along_axis(log_probs, labels[None], 2, mode="promise_in_bounds") if length else log_probs[:, :, :0]
    differs = jnp.concatenate([jnp.ones((n, 1), bool), labels[:, 1:] != labels[:, :-1]], 1)[:, :length]
    none = jnp.full((n, 1), _ZERO, log_probs.dtype)

    def step(state: tuple[Array, Array], frame: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (gap, label), (p_gap, p_label, here) = state, frame
        before = jnp.concatenate([none, label], 1)
        onward = _log_add(gap[:, :-1], jnp.where(differs, before[:, :-1], _ZERO))
        new = _log_add(gap, before) + p_gap[:, None], _log_add(label, onward) + p_label
        return (jnp.where(here[:, None], new[0], gap), jnp.where(here[:, None], new[1], label)), None

    start = jnp.concatenate([jnp.zeros_like(none), jnp.broadcast_to(none, (n, length))], 1), jnp.broadcast_to(none, (n, length))
    start, frames = alike(start, (log_probs[:, :, blank], emitted, live))
    (gap, label), _ = lax.scan(step, start, frames)
    ends = _log_add(gap, jnp.concatenate([none, label], 1))
    return (jnp.take_along_axis(ends, lengths[:, None], 1, mode="promise_in_bounds")[:, 0],)


def _recorded_as_defined(blank: int, log_probs: Array, labels: Array, *lengths: Array) -> Arrays:
    frames, batch, _ = log_probs.shape
    # What the library records is its own affair: the slopes are defined without.
    return *_as_defined(blank, log_probs, labels, *lengths), jnp.zeros((batch, frames + 1, 2, labels.shape[1] + 1), log_probs.dtype)


def _slopes_as_defined(blank: int, g: Array, log_probs: Array, *rest: Array) -> Arrays:
    *counts, _, _ = rest
    return (jax.vjp(lambda x: _as_defined(blank, x, *counts), log_probs)[1]((g,))[0],)


def _attributes(blank: int) -> dict[str, Any]:
    return {"blank": np.int64(blank)}


def _recorded(blank: int, *arrays: Array) -> tuple[Arrays, Arrays]:
    found, record = _forward(blank, *arrays)
    return (found,), (found, record)


_value = foreign("jnn_ctc", _as_defined, _attributes)
_forward = foreign("jnn_ctc", _recorded_as_defined, _attributes)
_backward = foreign("jnn_ctc_backward", _slopes_as_defined, _attributes)
_log_likelihood = differentiable(
    _as_defined,
    _recorded,
    lambda blank, gs, residuals, arrays, wanted: _backward(blank, *gs, *arrays, *residuals),
    _value,
)


@jax.custom_jvp
def _mass(log_probs: Array, factor: Array) -> Array:
    """0 for each sequence, with the derivative ``factor exp(log_probs)``."""
    return jnp.zeros_like(log_probs[0, :, 0])


@_mass.defjvp
def _mass_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _mass(*primals), jnp.sum(primals[1] * jnp.exp(primals[0]) * tangents[0], (0, 2))


def _not_negative(nll: Array, log_probs: Array, live: Array) -> Array:
    """``nll`` with 0 for what is negative only because the probabilities of the frames were rounded.

    All labellings together have the probability ``prod_t sum_c p_tc``. Where that is 1 but for rounding, so is every bound.
    """
    steps, _, classes = log_probs.shape

    def clamp(nll: Array) -> Array:
        total = jnp.sum(jnp.where(live, jax.nn.logsumexp(log_probs, 2), 0), 0)
        return jnp.where(total < steps * classes * jnp.finfo(nll.dtype).eps, jnp.maximum(nll, 0), nll)

    return lax.cond(jnp.any(nll < 0), clamp, lambda nll: nll, nll)


@function
@dtypes.in_float32
def losses(log_probs: Array, labels: Array, input_lengths: Array, target_lengths: Array, blank: int, zero_infinity: bool) -> Array:
    """The loss of each sequence: log_probs (T, N, C), labels (N, S), lengths (N,)."""
    steps, _, classes = log_probs.shape
    live = _live(steps, input_lengths)
    used = jnp.arange(labels.shape[1])[None] < target_lengths[:, None]
    legal = jnp.all(~used | ((labels >= 0) & (labels < classes)), 1)
    legal &= (input_lengths >= 0) & (input_lengths <= steps) & (target_lengths >= 0) & (target_lengths <= labels.shape[1])
    labels = jnp.where(used & legal[:, None], labels, 0)
    counts = (jnp.where(legal, lengths, 0).astype(jnp.int32) for lengths in (input_lengths, target_lengths))
    found = _log_likelihood(blank, log_probs, labels.astype(jnp.int32), *counts)[0]
    nll, possible = 0 - found, ~(found < _ZERO / 2)
    nll = straight_through(_not_negative(*lax.stop_gradient((nll, log_probs)), live), nll)
    slope = jnp.where(possible, 1.0, 0.0 if zero_infinity else jnp.nan).astype(nll.dtype)
    factor = jnp.where(live, slope[None], 0)[:, :, None]
    return (jnp.where(possible, nll, 0.0 if zero_infinity else jnp.inf) + _mass(log_probs, factor)) * jnp.where(legal, 1, jnp.nan)
