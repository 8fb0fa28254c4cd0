"""Losses between a prediction and a target of the same shape: numbers, or log-probabilities."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.derivatives import straight_through
from ..core.spec import layer
from ..kernels.distances import Penalty, summed
from .reduction import REDUCTIONS, Flag, Loss, PlainLoss, loss_function, reduced, warn_of_shapes

Array = jax.Array
_OF_DIVERGENCE = (*REDUCTIONS, "batchmean")


def _penalised(who: str, penalty: Penalty, input: Array, target: Array, reduction: str, weight: Array | None = None) -> Array:
    """The penalties of ``input - target``, each times ``weight`` where one is given, reduced."""
    x, y = checks.broadcast(who, input=input, target=target)
    if reduction == "none" or weight is not None or input.shape != target.shape:
        # Huber's loss does not divide by the weights.
        total = None if weight is None or penalty.kind == "huber" else jnp.sum(weight)
        return reduced(_weighted(who, penalty(x, y), weight, input), reduction, total)
    total = summed(penalty, x.ndim, x, y)
    return total if reduction == "sum" else total / x.size


def _weighted(who: str, elements: Array, weight: Array | None, input: Array) -> Array:
    if weight is None:
        return elements
    checks.require(weight.shape == input.shape, who, "weight must have the shape of input", ValueError, weight=weight, input=input)
    return elements * jnp.broadcast_to(weight, elements.shape)


@loss_function(values=warn_of_shapes)
def l1_loss(
    input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean", weight: Array | None = None
) -> Array:
    """The absolute error ``|input - target|``, each element times ``weight`` where one is given.

    A weighted mean divides by the sum of the weights.

    Shape: input (*), target the same or broadcastable, weight that of input; output () or (*) for reduction "none".

    Raises:
        ValueError: weight has another shape than input.
        RuntimeError: input and target do not broadcast.
    """
    return _penalised("l1_loss", Penalty("size"), input, target, reduction, weight)


@loss_function(values=warn_of_shapes)
def mse_loss(
    input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean", weight: Array | None = None
) -> Array:
    """The squared error ``(input - target)^2``, each element times ``weight`` where one is given.

    A weighted mean divides by the sum of the weights.

    Shape: input (*), target the same or broadcastable, weight that of input; output () or (*) for reduction "none".

    Raises:
        ValueError: weight has another shape than input.
        RuntimeError: input and target do not broadcast.
    """
    return _penalised("mse_loss", Penalty("square"), input, target, reduction, weight)


@loss_function(values=warn_of_shapes)
def smooth_l1_loss(
    input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean", beta: float = 1.0
) -> Array:
    """``d^2 / (2 beta)`` where ``d = |input - target|`` is below ``beta``, else ``d - beta / 2``; for ``beta`` 0, d itself.

    Shape: input (*), target the same or broadcastable; output () or (*) for reduction "none".

    Raises:
        RuntimeError: beta is negative, or input and target do not broadcast.
    """
    checks.require(beta >= 0, "smooth_l1_loss", "beta must not be negative", RuntimeError, beta=beta)
    if beta == 0:
        return _penalised("smooth_l1_loss", Penalty("size"), input, target, reduction)
    return _penalised("smooth_l1_loss", Penalty("huber", beta), input, target, reduction) / beta


@loss_function(values=warn_of_shapes)
def huber_loss(input: Array, target: Array, reduction: str = "mean", delta: float = 1.0, weight: Array | None = None) -> Array:
    """``d^2 / 2`` where ``d = |input - target|`` is below ``delta``, else ``delta (d - delta / 2)``; times ``weight`` if given.

    Shape: input (*), target the same or broadcastable, weight that of input; output () or (*) for reduction "none".

    Raises:
        RuntimeError: delta is not positive, or input and target do not broadcast.
        ValueError: weight has another shape than input.
    """
    checks.require(delta > 0, "huber_loss", "delta must be positive", RuntimeError, delta=delta)
    return _penalised("huber_loss", Penalty("huber", delta), input, target, reduction, weight)


@loss_function()
def poisson_nll_loss(
    input: Array,
    target: Array,
    log_input: bool = True,
    full: bool = False,
    size_average: Flag = None,
    eps: float = 1e-8,
    reduce: Flag = None,
    reduction: str = "mean",
) -> Array:
    """The negative log-likelihood of counts under Poisson(exp(input)), or Poisson(input) without ``log_input``.

    ``exp(x) - y x``, or ``x - y log(x + eps)``. ``full`` adds Stirling's approximation of ``log y!``, ``y log y - y +
    log(2 pi y) / 2``, where y > 1.

    Shape: input (*), target the same or broadcastable; output () or (*) for reduction "none".
    """
    x, y = checks.broadcast("poisson_nll_loss", input=input, target=target)
    elements = jnp.exp(x) - y * x if log_input else x - y * jnp.log(x + eps)
    if full:
        large = y > 1
        safe = jnp.where(large, y, 2)
        elements = elements + jnp.where(large, safe * jnp.log(safe) - safe + 0.5 * jnp.log(2 * math.pi * safe), 0)
    return reduced(elements, reduction, plain=not full)


def _check_variance(input: Array, target: Array, var: Array | float, *_: Any) -> None:
    known = checks.concrete(var)
    checks.require(known is None or not (known < 0).any(), "gaussian_nll_loss", "var must not be negative", var=var)


@loss_function(values=_check_variance)
def gaussian_nll_loss(
    input: Array, target: Array, var: Array | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Array:
    """The negative log-likelihood ``(log v + (input - target)^2 / v) / 2`` of a normal distribution, ``v = max(var, eps)``.

    ``full`` adds the constant ``log(2 pi) / 2``. The clamp does not stop the gradient of ``var``.

    Shape: input (*), target the same or broadcastable, var a number, or the shape of input, or that with a last or one other
        dimension 1, or without the last; output () or (*) for reduction "none".

    Raises:
        ValueError: var has another shape, or a known var is negative. A traced one gives NaN.
        RuntimeError: input and target do not broadcast.
    """
    x, y = checks.broadcast("gaussian_nll_loss", input=input, target=target)
    var = jnp.asarray(var, None if isinstance(var, jax.Array) else input.dtype)
    if var.ndim and var.shape == input.shape[:-1]:
        var = var[..., None]
    fits = var.ndim == input.ndim and sum(v for n, v in zip(input.shape, var.shape) if n != v) <= 1
    checks.require(var.ndim == 0 or fits, "gaussian_nll_loss", "var must have the shape of input", input=input, var=var)
    var = checks.expand("gaussian_nll_loss", "var", jnp.where(var < 0, jnp.nan, var), x.shape)
    var = straight_through(jnp.maximum(var, eps), var)
    elements = 0.5 * (jnp.log(var) + jnp.square(x - y) / var)
    return reduced(elements + 0.5 * math.log(2 * math.pi) if full else elements, reduction)


def _warn_of_mean(input: Array, target: Array, size_average: Any, reduce: Any, reduction: str, *_: Any) -> None:
    if reduction == "mean":
        warnings.warn("kl_div: 'mean' divides by the number of elements; 'batchmean' is the divergence", UserWarning, stacklevel=4)


@loss_function(allowed=_OF_DIVERGENCE, values=_warn_of_mean)
def kl_div(
    input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean", log_target: bool = False
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


@layer
class SmoothL1Loss(PlainLoss):
    """The absolute error, rounded off by a parabola below ``beta``: ``d^2 / (2 beta)``, else ``d - beta / 2``.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
        beta: where the parabola ends; 0 gives the absolute error.

    Reference: Girshick, "Fast R-CNN", 2015.
    """

    beta: float = 1.0

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


@layer
class HuberLoss(Loss):
    """The squared error, continued by a line beyond ``delta``: ``d^2 / 2``, else ``delta (d - delta / 2)``.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        reduction: "mean", "sum" or "none".
        delta: where the line begins; positive.

    Reference: Huber, "Robust Estimation of a Location Parameter", 1964.
    """

    reduction: str = "mean"
    delta: float = 1.0

    def validate(self) -> None:
        super().validate()
        checks.require(isinstance(self.delta, (int, float)), self, "delta must be a number", TypeError, delta=self.delta)

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return huber_loss(input, target, reduction=self.reduction, delta=self.delta)


@layer
class PoissonNLLLoss(Loss):
    """The negative log-likelihood of counts under a Poisson distribution, up to ``log y!``.

    Shape: log_input (*), target (*); output (), or (*) for reduction "none".

    Args:
        log_input: whether the input is the logarithm of the rate: ``exp(x) - y x``, else ``x - y log(x + eps)``.
        full: whether to add Stirling's approximation of ``log y!``.
        size_average, reduce: deprecated; they override ``reduction``.
        eps: added to a rate before its logarithm is taken.
        reduction: "mean", "sum" or "none".
    """

    log_input: bool = True
    full: bool = False
    size_average: Flag = None
    eps: float = 1e-8
    reduce: Flag = None
    reduction: str = "mean"

    def compute(self, s: Any, log_input: Array, target: Array) -> Array:
        return poisson_nll_loss(log_input, target, self.log_input, self.full, eps=self.eps, reduction=self.reduction)


@layer
class GaussianNLLLoss(Loss):
    """The negative log-likelihood ``(log v + (x - y)^2 / v) / 2`` of a normal distribution with a predicted variance.

    Shape: input (*), target (*), var a number, (*), or (*) with one dimension 1 or without the last; output (), or (*) for
        reduction "none".

    Args:
        full: whether to add the constant ``log(2 pi) / 2``.
        eps: the least variance; the clamp does not stop the gradient.
        reduction: "mean", "sum" or "none".

    Reference: Nix and Weigend, "Estimating the Mean and Variance of the Target Probability Distribution", 1994.
    """

    full: bool = False
    eps: float = 1e-6
    reduction: str = "mean"

    def compute(self, s: Any, input: Array, target: Array, var: Array | float) -> Array:
        return gaussian_nll_loss(input, target, var, self.full, self.eps, self.reduction)


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
    reductions = _OF_DIVERGENCE

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
