"""The forward algorithm of connectionist temporal classification, as one loop over the frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# The logarithm of probability 0. It is finite so that differences of two of them are 0 and not NaN; what ends below half
# of it was impossible.
ZERO = -1e30


def log_likelihood(log_probs: Array, labels: Array, live: Array, lengths: Array, blank: int) -> Array:
    """The log of the summed probability of all alignments, (N,), at most about ``ZERO`` where there is none.

    ``log_probs`` (T, N, C), ``labels`` (N, S) of which ``lengths`` (N,) count, ``live`` (T, N) the frames that count. After each
    frame ``gap[:, s]`` is the log-probability of having emitted s labels and then a blank, and ``label[:, s]`` of having
    emitted s + 1 with no blank since.
    """
    n, length = labels.shape
    log_probs = jnp.maximum(log_probs, ZERO)
    emitted = jnp.take_along_axis(log_probs, labels[None], 2, mode="promise_in_bounds") if length else log_probs[:, :, :0]
    differs = jnp.concatenate([jnp.ones((n, 1), bool), labels[:, 1:] != labels[:, :-1]], 1)[:, :length]
    none = jnp.full((n, 1), ZERO, log_probs.dtype)

    def step(state: tuple[Array, Array], frame: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (gap, label), (p_gap, p_label, here) = state, frame
        before = jnp.concatenate([none, label], 1)
        onward = jnp.logaddexp(gap[:, :-1], jnp.where(differs, before[:, :-1], ZERO))
        new = jnp.logaddexp(gap, before) + p_gap[:, None], jnp.logaddexp(label, onward) + p_label
        return (jnp.where(here[:, None], new[0], gap), jnp.where(here[:, None], new[1], label)), None

    start = jnp.concatenate([jnp.zeros_like(none), jnp.broadcast_to(none, (n, length))], 1), jnp.broadcast_to(none, (n, length))
    (gap, label), _ = lax.scan(step, start, (log_probs[:, :, blank], emitted, live))
    ends = jnp.logaddexp(gap, jnp.concatenate([none, label], 1))
    return jnp.take_along_axis(ends, lengths[:, None], 1, mode="promise_in_bounds")[:, 0]
