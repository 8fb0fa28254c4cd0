"""Losses between two distributions."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.spec import layer
from .reduction import REDUCTIONS, Legacy, PlainLoss, loss_function, reduced

Array = jax.Array
ALLOWED = (*REDUCTIONS, "batchmean")


def _warn_of_mean(input: Array, target: Array, size_average: Any, reduce: Any, reduction: str, *_: Any) -> None:
    if reduction == "mean":
        warnings.warn("kl_div: 'mean' divides by the number of elements; 'batchmean' is the divergence", UserWarning, stacklevel=4)


@loss_function(allowed=ALLOWED, values=_warn_of_mean)
def kl_div(
    input: Array, target: Array, size_average: Legacy = None, reduce: Legacy = None, reduction: str = "mean", log_target: bool = False
) -> Array:
    """The Kullback-Leibler divergence ``target (log target - input)`` of log-probabilities ``input`` from ``target``.

    "mean" divides by the number of elements, which is seldom meant, and warns; "batchmean" by the size of the first dimension.

    Shape: input (*), target the same or broadcastable; output () or (*) for reduction "none".

    Args:
        log_target: whether target holds log-probabilities too.

    Differs from torch: where a target probability is 0 its gradient is ``-input``, not NaN.
    """
    x, y = checks.broadcast("kl_div", input=input, target=target)
    if log_target:
        elements = jnp.exp(y) * (y - x)
    else:
        zero = y == 0
        elements = jnp.where(zero, 0, y * jnp.log(jnp.where(zero, 1, y))) - y * x
    if reduction == "batchmean":
        return reduced(elements, "mean", input.shape[0] if input.ndim else 1)
    return reduced(elements, reduction)


@layer
class KLDivLoss(PlainLoss):
    """The Kullback-Leibler divergence ``y (log y - x)`` of log-probabilities x from probabilities y.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "batchmean" (the divergence), "sum", "none", or "mean", which divides by the number of elements and warns.
        log_target: whether target holds log-probabilities too.
    """

    log_target: bool = False
    reductions = ALLOWED

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
