"""Losses between a prediction and a target of the same shape."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.function import function
from ..core.spec import layer
from .reduction import Loss, reduced, resolve

Array = jax.Array


def paired(who: str, input: Array, target: Array) -> tuple[Array, Array]:
    """Input and target broadcast to one shape; torch warns where their shapes differ, for it is seldom meant."""
    if input.shape != target.shape:
        warnings.warn(f"{who}: input and target are broadcast, got shapes {input.shape} and {target.shape}", UserWarning, stacklevel=4)
    try:
        shape = jnp.broadcast_shapes(input.shape, target.shape)
    except ValueError:
        checks.fail(who, "input and target must broadcast to one shape", RuntimeError, input=input, target=target)
    return jnp.broadcast_to(input, shape), jnp.broadcast_to(target, shape)


@function
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

    Shape: input (*), target and weight the same or broadcastable; output () or (*) for reduction "none".
    """
    reduction = resolve("mse_loss", reduction, size_average, reduce)
    x, y = paired("mse_loss", input, target)
    return _weighted("mse_loss", jnp.square(x - y), weight, reduction)


def _weighted(who: str, elements: Array, weight: Array | None, reduction: str) -> Array:
    if weight is None:
        return reduced(elements, reduction)
    checks.require(
        weight.shape == elements.shape, who, "weight must have the shape of the input", ValueError, weight=weight, input=elements
    )
    elements = elements * weight
    return jnp.sum(elements) / jnp.sum(weight) if reduction == "mean" else reduced(elements, reduction)


@layer
class MSELoss(Loss):
    """The mean squared error ``(x - y)^2``.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        reduction: "mean", "sum" or "none".
        size_average, reduce: deprecated; see :mod:`jnn.losses.reduction`.
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return mse_loss(input, target, reduction=self.reduction)
