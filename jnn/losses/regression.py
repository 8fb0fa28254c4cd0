"""Losses between a prediction and a target of the same shape."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.spec import layer
from .reduction import PlainLoss, broadcast, loss_function, reduced, warn_of_shapes

Array = jax.Array


def _weighted(who: str, elements: Array, weight: Array | None, input: Array) -> Array:
    if weight is None:
        return elements
    checks.require(weight.shape == input.shape, who, "weight must have the shape of input", ValueError, weight=weight, input=input)
    return elements * jnp.broadcast_to(weight, elements.shape)


@loss_function(values=warn_of_shapes)
def l1_loss(
    input: Array,
    target: Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Array | None = None,
) -> Array:
    """The absolute error ``|input - target|``, each element times ``weight`` where one is given.

    A weighted mean divides by the sum of the weights.

    Shape: input (*), target the same or broadcastable, weight that of input; output () or (*) for reduction "none".

    Raises:
        ValueError: weight has another shape than input.
        RuntimeError: input and target do not broadcast.
    """
    x, y = broadcast("l1_loss", input=input, target=target)
    return reduced(_weighted("l1_loss", jnp.abs(x - y), weight, input), reduction, None if weight is None else jnp.sum(weight))


@loss_function(values=warn_of_shapes)
def mse_loss(
    input: Array,
    target: Array,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Array | None = None,
) -> Array:
    """The squared error ``(input - target)^2``, each element times ``weight`` where one is given.

    A weighted mean divides by the sum of the weights.

    Shape: input (*), target the same or broadcastable, weight that of input; output () or (*) for reduction "none".

    Raises:
        ValueError: weight has another shape than input.
        RuntimeError: input and target do not broadcast.
    """
    x, y = broadcast("mse_loss", input=input, target=target)
    return reduced(_weighted("mse_loss", jnp.square(x - y), weight, input), reduction, None if weight is None else jnp.sum(weight))


@layer
class L1Loss(PlainLoss):
    """The mean absolute error ``|x - y|``.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return l1_loss(input, target, reduction=self.reduction)


@layer
class MSELoss(PlainLoss):
    """The mean squared error ``(x - y)^2``.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return mse_loss(input, target, reduction=self.reduction)
