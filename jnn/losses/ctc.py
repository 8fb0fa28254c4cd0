"""Connectionist temporal classification."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.spec import layer
from ..kernels import ctc as kernel
from .reduction import Loss, loss_function, reduced

Array = jax.Array


def _lengths(name: str, given: Any, batch: int, most: int) -> Array:
    """One length for each sequence, as an array; known ones must be in [0, most]."""
    lengths = jnp.asarray(given)
    integral = jnp.issubdtype(lengths.dtype, np.integer) or not lengths.size
    checks.require(integral, "ctc_loss", f"{name} must be integers", RuntimeError, dtype=lengths.dtype)
    fits = lengths.size == batch
    checks.require(fits, "ctc_loss", f"{name} must have one length for each sequence", RuntimeError, batch=batch, got=given)
    checks.index_range("ctc_loss", name, lengths, most + 1, exc=RuntimeError)
    return lengths.reshape(batch)


def _padded(targets: Array, target_lengths: Array) -> Array:
    """Concatenated targets as (N, S), with anything past each length; S is the largest length, or all where they are traced."""
    known = checks.concrete(target_lengths)
    if known is not None:
        fits = known.sum() == targets.size
        checks.require(fits, "ctc_loss", "targets must hold sum(target_lengths) labels", RuntimeError, targets=targets)
    width = targets.size if known is None else int(known.max(initial=0))
    if not width:
        return jnp.zeros((target_lengths.size, 0), targets.dtype)
    first = jnp.cumsum(target_lengths) - target_lengths
    return targets[jnp.minimum(first[:, None] + jnp.arange(width)[None], targets.size - 1)]


def _check_labels(labels: Array, target_lengths: Array, classes: int) -> None:
    known, lengths = checks.concrete(labels), checks.concrete(target_lengths)
    if known is not None and lengths is not None:
        used = known[np.arange(known.shape[1])[None] < lengths[:, None]]
        checks.index_range("ctc_loss", "targets", used, classes)


@loss_function(jit=False)
def ctc_loss(
    log_probs: Array,
    targets: Array,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Array:
    """``-log`` of the summed probability of all alignments of a sequence of labels to frames.

    An alignment has one label or blank for each frame; taking repeats together and then blanks away gives the labels. A
    sequence with no alignment has an infinite loss, or 0 with ``zero_infinity``. The mean is over the losses divided by
    their target lengths.

    The gradient is that of torch and cuDNN, ``exp(log_probs) - posterior``: right when log_probs come from a log_softmax and
    passed back through it. It is 0 past each input length.

    Shape: log_probs (T, N, C) or (T, C); targets (N, S) or concatenated (sum(target_lengths)), for (T, C) just (S);
        input_lengths and target_lengths (N) arrays or tuples, or () for (T, C); output (), or (N) for reduction "none".

    Args:
        log_probs: logarithms of probabilities of classes.
        blank: the class that is no label.
        zero_infinity: whether an infinite loss, and its gradient, is replaced by 0.

    Raises:
        RuntimeError: a shape is another, a known length exceeds its array, or blank is no class.
        IndexError: a known label is outside [0, C). A traced one, or a traced bad length, gives NaN.

    Differs from torch: a label outside [0, C) is refused; it reads other memory there. A loss of normalised probabilities is never
    below 0 by rounding.
    """
    who, batched = "ctc_loss", log_probs.ndim == 3
    checks.rank(who, log_probs, (2, 3), name="log_probs")
    checks.rank(who, targets, (1, 2) if batched else (1,), name="targets")
    log_probs, targets = (log_probs, targets) if batched else (log_probs[:, None], targets[None])
    steps, batch, classes = log_probs.shape
    checks.floating(who, "log_probs", log_probs)
    checks.require(steps * batch > 0, who, "log_probs must not be empty", RuntimeError, log_probs=log_probs)
    checks.require(0 <= blank < classes, who, "blank must be a class", RuntimeError, blank=blank, classes=classes)
    input_lengths = _lengths("input_lengths", input_lengths, batch, steps)
    target_lengths = _lengths("target_lengths", target_lengths, batch, targets.shape[-1])
    if targets.ndim == 1:
        targets = _padded(targets, target_lengths)
    fits = targets.shape[0] == batch
    checks.require(fits, who, "targets must have one row for each sequence", RuntimeError, targets=targets, batch=batch)
    labels = targets.astype(target_lengths.dtype)
    _check_labels(labels, target_lengths, classes)
    losses = kernel.losses(log_probs, labels, input_lengths, target_lengths, blank, zero_infinity)
    if reduction == "mean":
        losses = losses / jnp.maximum(target_lengths, 1).astype(losses.dtype)
    return reduced(losses if batched else losses[0], reduction)


@layer
class CTCLoss(Loss):
    """``-log`` of the summed probability of all alignments of a sequence of labels to frames; see :func:`ctc_loss`.

    Shape: log_probs (T, N, C) or (T, C); targets (N, S) or concatenated (sum(target_lengths)), for (T, C) just (S);
        input_lengths and target_lengths (N) or (); output (), or (N) for reduction "none".

    Args:
        blank: the class that is no label.
        reduction: "mean" (of the losses divided by their target lengths), "sum" or "none".
        zero_infinity: whether an infinite loss, and its gradient, is replaced by 0.

    Reference: Graves et al., "Connectionist Temporal Classification", 2006.
    """

    blank: int = 0
    reduction: str = "mean"
    zero_infinity: bool = False

    def compute(self, s: Any, log_probs: Array, targets: Array, input_lengths: Any, target_lengths: Any) -> Array:
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction, self.zero_infinity)
