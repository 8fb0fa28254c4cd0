"""Losses between scores of classes, or log-probabilities, and the right class."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ..core import checks
from ..core.spec import buffer, config, layer
from ..kernels.activations import softplus
from ..kernels.gather import pick
from ..kernels.softmax import log_softmax, log_softmax_at
from ..kernels.sums import sum_last
from .reduction import Flag, Loss, PlainLoss, constant, loss_function, reduced

Array = jax.Array


def _require_indices(who: str, input: Any, target: Array) -> None:
    integral = jnp.issubdtype(target.dtype, np.integer)
    checks.require(integral, who, "target must hold integer class indices", RuntimeError, dtype=target.dtype)
    if input.ndim > 1:
        same = target.ndim >= 1 and target.shape[0] == input.shape[0]
        checks.require(same, who, "input and target must have one batch size", ValueError, input=input, target=target)
    expected = input.shape[:1] * (input.ndim > 1) + input.shape[2:]
    checks.require(target.shape == expected, who, f"target must have shape {expected}", RuntimeError, target=target)


def _require_weight(who: str, input: Any, weight: Array | None) -> None:
    if weight is not None:
        classes = input.shape[min(input.ndim - 1, 1)]
        checks.require(weight.shape == (classes,), who, "weight must have one element per class", RuntimeError, weight=weight, input=input)
        checks.same_dtype(who, input=input, weight=weight)


def _check_indices(who: str, input: Array, target: Array, weight: Any, size_average: Any, ignore_index: int, *_: Any) -> None:
    """Refuse known class indices that are no class of ``input``."""
    if input.ndim and target.shape != input.shape and jnp.issubdtype(target.dtype, np.integer):
        checks.index_range(who, "target", target, input.shape[min(input.ndim - 1, 1)], also=ignore_index)


def _along(weight: Array, like: Array, axis: int) -> Array:
    """Class weights (C,) in the shape of ``like``, whose classes lie at ``axis``."""
    return jax.lax.broadcast_in_dim(weight, like.shape, (axis,))


def target_scale(target: Array, weight: Array | None, classes: int, ignore_index: int, dtype: Any) -> Array:
    """The weight of each target class: 0 where it is ignored, NaN where it is no class. The mean divides by their sum."""
    valid, ignored = (target >= 0) & (target < classes), target == ignore_index
    scale = jnp.where(valid | ignored, 1, jnp.nan).astype(dtype)
    if weight is not None and classes:
        scale = scale * weight[jnp.where(valid, target, 0)]
    return jnp.where(ignored, 0, scale)


def _nll(picked: Array, target: Array, scale: Array, ignore_index: int) -> Array:
    """The negative of the log-likelihoods ``picked`` for class indices, times ``scale``."""
    return jnp.where(target == ignore_index, 0, -picked * scale)


def require_smoothing(who: object, value: float) -> None:
    """Refuse a share of the targets that is none."""
    checks.require(0 <= value <= 1, who, "label_smoothing must be in [0, 1]", RuntimeError, label_smoothing=value)


def require_target(who: str, input: Any, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float) -> None:
    """The checks of :func:`cross_entropy`, of arrays or of their shapes and dtypes."""
    checks.require(input.ndim >= 1, who, "input must have at least one dimension", ValueError, shape=input.shape)
    require_smoothing(who, label_smoothing)
    if target.shape != input.shape:
        _require_indices(who, input, target)
    else:
        floating = jnp.issubdtype(target.dtype, jnp.floating)
        checks.require(floating, who, "a target of the shape of input must be floating point probabilities", RuntimeError, target=target)
        checks.require(ignore_index < 0, who, "probabilities cannot be ignored by index", RuntimeError, ignore_index=ignore_index)
    _require_weight(who, input, weight)


@loss_function(values=functools.partial(_check_indices, "nll_loss"))
def nll_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: Flag = None,
    ignore_index: int = -100,
    reduce: Flag = None,
    reduction: str = "mean",
) -> Array:
    """The negative log-likelihood ``-weight[target] * input[target]`` of class indices.

    The mean divides by the sum of the weights of the targets. Elements whose target is ``ignore_index`` count for nothing.

    Shape: input (C), (N, C) or (N, C, d1, ...) log-probabilities, target (), (N) or (N, d1, ...), weight (C); output (), or the
        shape of target for reduction "none".

    Raises:
        IndexError: a known target is outside [0, C) and is not ``ignore_index``. A traced one gives NaN.
        ValueError: the batch sizes differ.
        RuntimeError: target or weight has another shape, or target is not integral.
    """
    who = "nll_loss"
    checks.require(input.ndim >= 1, who, "input must have at least one dimension", ValueError, shape=input.shape)
    _require_indices(who, input, target)
    _require_weight(who, input, weight)
    axis = min(input.ndim - 1, 1)
    scale = target_scale(target, weight, input.shape[axis], ignore_index, input.dtype)
    return reduced(_nll(pick(input, target, axis)[0], target, scale, ignore_index), reduction, sum_last(scale, scale.ndim))


@loss_function(values=functools.partial(_check_indices, "cross_entropy"))
def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: Flag = None,
    ignore_index: int = -100,
    reduce: Flag = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """The cross entropy of softmax(input) and a target, of class indices or of class probabilities.

    ``-sum_c q_c weight_c log softmax(input)_c`` with q the target distribution, mixed with the uniform one by
    ``label_smoothing``. For indices the mean divides by the sum of the weights of the targets, for probabilities by their number.

    Shape: input (C), (N, C) or (N, C, d1, ...), target the same without C for indices and with it for probabilities, weight (C);
        output (), or the shape of input without C for reduction "none".

    Raises:
        IndexError: a known target is outside [0, C) and is not ``ignore_index``. A traced one gives NaN.
        ValueError: the batch sizes differ.
        RuntimeError: target or weight has another shape or dtype, label_smoothing is outside [0, 1], or ignore_index is a class
            although the target is probabilities.
    """
    require_target("cross_entropy", input, target, weight, ignore_index, label_smoothing)
    axis = min(input.ndim - 1, 1)
    classes = input.shape[axis]
    if target.shape != input.shape:
        scale = target_scale(target, weight, classes, ignore_index, input.dtype)
        elements = _nll(log_softmax_at(input, target, axis), target, scale, ignore_index)
        if label_smoothing:
            log_probs = log_softmax(input, axis)
            spread = jnp.sum(log_probs if weight is None else log_probs * _along(weight, log_probs, axis), axis)
            spread = jnp.where(target == ignore_index, 0, spread)
            elements = (1 - label_smoothing) * elements - label_smoothing / classes * spread
        return reduced(elements, reduction, sum_last(scale, scale.ndim))
    log_probs = log_softmax(input, axis)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    elements = target * log_probs
    return reduced(-jnp.sum(elements if weight is None else elements * _along(weight, elements, axis), axis), reduction)


@loss_function()
def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: Flag = None,
    reduce: Flag = None,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Array:
    """``-weight (pos_weight y log sigmoid(x) + (1 - y) log sigmoid(-x))``, exact for logits of any size.

    Shape: input (*), target the same, weight and pos_weight broadcastable to it; output () or (*) for reduction "none".

    Raises:
        ValueError: the shapes of input and target differ.
        RuntimeError: weight or pos_weight does not broadcast.
    """
    who = "binary_cross_entropy_with_logits"
    _require_same_shape(who, input, target)
    falling = softplus(-input)
    if pos_weight is not None:
        falling = falling * (1 + (checks.expand(who, "pos_weight", pos_weight, input.shape) - 1) * target)
    return _weighted(who, (1 - target) * input + falling, weight, reduction)


def _require_same_shape(who: str, input: Array, target: Array) -> None:
    checks.require(input.shape == target.shape, who, "input and target must have one shape", ValueError, input=input, target=target)


def _weighted(who: str, elements: Array, weight: Array | None, reduction: str) -> Array:
    return reduced(elements if weight is None else elements * checks.expand(who, "weight", weight, elements.shape), reduction)


@jax.custom_jvp
def _bce(x: Array, y: Array) -> Array:
    return (y - 1) * jnp.maximum(jnp.log1p(-x), -100) - y * jnp.maximum(jnp.log(x), -100)


def _bce_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    """torch's derivatives, that in x finite at 0 and 1. A factor may be infinite, so only true tangents are multiplied."""
    x, y = primals
    factors = (x - y) / jnp.maximum((1 - x) * x, 1e-12), jnp.log1p(-x) - jnp.log(x)
    parts = [f * t for f, t in zip(factors, tangents, strict=True) if not isinstance(t, SymbolicZero)]
    return _bce(x, y), sum(parts, start=jnp.zeros_like(x))


_bce.defjvp(_bce_jvp, symbolic_zeros=True)


def _check_probabilities(input: Array, target: Array, *_: Any) -> None:
    for name, x in (("input", input), ("target", target)):
        known = checks.concrete(x)
        ok = known is None or ((known >= 0) & (known <= 1)).all()
        checks.require(ok, "binary_cross_entropy", f"{name} must be in [0, 1]", RuntimeError)


@loss_function(values=_check_probabilities)
def binary_cross_entropy(
    input: Array, target: Array, weight: Array | None = None, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean"
) -> Array:
    """``-weight (y log x + (1 - y) log(1 - x))`` of probabilities, each logarithm at least -100.

    The gradient is ``(x - y) / max(x (1 - x), 1e-12)``, so that both are finite at 0 and 1.

    Shape: input (*), target the same, weight broadcastable to it; output () or (*) for reduction "none".

    Raises:
        ValueError: the shapes of input and target differ.
        RuntimeError: a known input or target is outside [0, 1] (a traced input gives NaN), the dtypes differ, or weight does not
            broadcast.
    """
    who = "binary_cross_entropy"
    _require_same_shape(who, input, target)
    checks.same_dtype(who, input=input, target=target)
    return _weighted(who, _bce(input, target), weight, reduction)


@loss_function()
def multilabel_soft_margin_loss(
    input: Array, target: Array, weight: Array | None = None, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean"
) -> Array:
    """The mean over classes of ``-weight (y log sigmoid(x) + (1 - y) log sigmoid(-x))``.

    Shape: input (*, C), target the same or broadcastable, weight broadcastable to it; output (), or (*) for reduction "none".

    Raises:
        IndexError: input has no dimensions.
        RuntimeError: the shapes do not broadcast.
    """
    who = "multilabel_soft_margin_loss"
    checks.require(input.ndim >= 1, who, "input must have at least one dimension", IndexError, input=input)
    x, y = checks.broadcast(who, input=input, target=target)
    elements = _weighted(who, y * softplus(-x) + (1 - y) * softplus(x), weight, "none")
    return reduced(jnp.mean(elements, -1), reduction)


@layer
class WeightedLoss(Loss):
    """Base of the losses with a class weight, which is a buffer."""

    class_weight: Any = config(default=None, alias="weight")
    weight: Array | None = buffer()


@layer
class _IndexLoss(WeightedLoss):
    size_average: Flag = None
    ignore_index: int = -100
    reduce: Flag = None
    reduction: str = "mean"


@layer
class _ElementLoss(PlainLoss, WeightedLoss):
    pass


@layer
class NLLLoss(_IndexLoss):
    """The negative log-likelihood of class indices, given log-probabilities.

    Shape: input (C), (N, C) or (N, C, d1, ...), target (), (N) or (N, d1, ...); output (), or that of target for reduction "none".

    Args:
        weight: the weight of each class, (C,); all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        ignore_index: a target that counts for nothing.
        reduction: "mean" (over the weights of the targets), "sum" or "none".

    State: the buffer ``weight`` (C,), where one is given.
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return nll_loss(input, target, s.weight, ignore_index=self.ignore_index, reduction=self.reduction)


@layer
class NLLLoss2d(NLLLoss):
    """The old name of :class:`NLLLoss`, with a FutureWarning."""

    def validate(self) -> None:
        warnings.warn("NLLLoss2d is deprecated, use NLLLoss", FutureWarning, stacklevel=3)
        super().validate()


@layer
class CrossEntropyLoss(_IndexLoss):
    """The cross entropy of softmax(input) and class indices or class probabilities.

    Shape: input (C), (N, C) or (N, C, d1, ...), target the same without C for indices and with it for probabilities; output (), or
        the shape of input without C for reduction "none".

    Args:
        weight: the weight of each class, (C,); all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        ignore_index: a target index that counts for nothing.
        reduction: "mean" (over the weights of the target indices), "sum" or "none".
        label_smoothing: how much of the target distribution is made uniform, in [0, 1].

    State: the buffer ``weight`` (C,), where one is given.

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015 (label smoothing).
    """

    label_smoothing: float = 0.0

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return cross_entropy(
            input, target, s.weight, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.label_smoothing
        )


@layer
class BCEWithLogitsLoss(_ElementLoss):
    """The binary cross entropy of sigmoid(input) and a target, exact for logits of any size.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        weight: of each element, broadcastable to input; all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
        pos_weight: what the positive part of each element is multiplied by, broadcastable to input.

    State: the buffers ``weight`` and ``pos_weight``, where they are given.
    """

    positive_weight: Any = config(default=None, alias="pos_weight")
    pos_weight: Array | None = buffer()

    def setup(self, key: Array) -> dict[str, Array | None]:
        return {**super().setup(key), "pos_weight": constant(self, "pos_weight", self.positive_weight)}

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return binary_cross_entropy_with_logits(input, target, s.weight, reduction=self.reduction, pos_weight=s.pos_weight)


@layer
class BCELoss(_ElementLoss):
    """The binary cross entropy ``-weight (y log x + (1 - y) log(1 - x))`` of probabilities, each logarithm at least -100.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        weight: of each element, broadcastable to input; all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".

    State: the buffer ``weight``, where one is given.
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return binary_cross_entropy(input, target, s.weight, reduction=self.reduction)


@layer
class MultiLabelSoftMarginLoss(_ElementLoss):
    """The mean over classes of the binary cross entropy of sigmoid(input) and a target of zeros and ones.

    Shape: input (*, C), target the same; output (), or (*) for reduction "none".

    Args:
        weight: the weight of each class, (C,); all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".

    State: the buffer ``weight`` (C,), where one is given.
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return multilabel_soft_margin_loss(input, target, s.weight, reduction=self.reduction)
