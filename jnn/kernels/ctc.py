"""The forward algorithm of connectionist temporal classification, as one loop over the frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ..core import dtypes
from ..core.derivatives import straight_through
from ..core.function import function
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


def _log_likelihood(log_probs: Array, labels: Array, live: Array, lengths: Array, blank: int) -> Array:
    """The log of the summed probability of all alignments, (N,), at most about ``_ZERO`` where there is none.

    ``log_probs`` (T, N, C), ``labels`` (N, S) of which ``lengths`` (N,) count, ``live`` (T, N) the frames that count. After each
    frame ``gap[:, s]`` is the log-probability of having emitted s labels and then a blank, and ``label[:, s]`` of having
    emitted s + 1 with no blank since.
    """
    n, length = labels.shape
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
    return jnp.take_along_axis(ends, lengths[:, None], 1, mode="promise_in_bounds")[:, 0]


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
    live = jnp.arange(steps)[:, None] < input_lengths[None]
    used = jnp.arange(labels.shape[1])[None] < target_lengths[:, None]
    legal = jnp.all(~used | ((labels >= 0) & (labels < classes)), 1)
    legal &= (input_lengths >= 0) & (input_lengths <= steps) & (target_lengths >= 0) & (target_lengths <= labels.shape[1])
    labels = jnp.where(used & legal[:, None], labels, 0)
    found = _log_likelihood(log_probs, labels, live, jnp.where(legal, target_lengths, 0), blank)
    nll, possible = 0 - found, ~(found < _ZERO / 2)
    nll = straight_through(_not_negative(*lax.stop_gradient((nll, log_probs)), live), nll)
    slope = jnp.where(possible, 1.0, 0.0 if zero_infinity else jnp.nan).astype(nll.dtype)
    factor = jnp.where(live, slope[None], 0)[:, :, None]
    return (jnp.where(possible, nll, 0.0 if zero_infinity else jnp.inf) + _mass(log_probs, factor)) * jnp.where(legal, 1, jnp.nan)
