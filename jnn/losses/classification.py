"""Losses between scores of classes, or log-probabilities, and the right class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.spec import buffer, config, layer
from .reduction import Loss, broadcast, constant, loss_function, reduced

Array = jax.Array


def _class_axis(who: str, input: Array) -> int:
    checks.require(input.ndim >= 1, who, "input must have at least one dimension", ValueError, shape=input.shape)
    return min(input.ndim - 1, 1)


def _is_probabilities(who: str, input: Array, target: Array) -> bool:
    if target.shape != input.shape:
        return False
    floating = jnp.issubdtype(target.dtype, jnp.floating)
    checks.require(floating, who, "a target of the shape of input must be floating point probabilities", RuntimeError, dtype=target.dtype)
    return True


def _require_indices(who: str, input: Array, target: Array, weight: Array | None) -> None:
    integral = jnp.issubdtype(target.dtype, np.integer)
    checks.require(integral, who, "target must hold integer class indices", RuntimeError, dtype=target.dtype)
    if input.ndim > 1:
        same = target.ndim >= 1 and target.shape[0] == input.shape[0]
        checks.require(same, who, "input and target must have one batch size", ValueError, input=input, target=target)
    expected = input.shape[:1] * (input.ndim > 1) + input.shape[2:]
    checks.require(target.shape == expected, who, f"target must have shape {expected}", RuntimeError, target=target)
    _require_weight(who, input, weight)


def _require_weight(who: str, input: Array, weight: Array | None) -> None:
    if weight is not None:
        classes = input.shape[_class_axis(who, input)]
        checks.require(weight.shape == (classes,), who, "weight must have one element per class", RuntimeError, weight=weight, input=input)
        checks.same_dtype(who, input=input, weight=weight)


def check_indices(who: str, input: Array, target: Array, ignore_index: int) -> None:
    """Refuse known class indices that are no class of ``input``."""
    if input.ndim and target.shape != input.shape and jnp.issubdtype(target.dtype, np.integer):
        checks.index_range(who, "target", target, input.shape[min(input.ndim - 1, 1)], also=ignore_index)


def _along(weight: Array, like: Array, axis: int) -> Array:
    """Class weights (C,) in the shape of ``like``, whose classes lie at ``axis``."""
    return jax.lax.broadcast_in_dim(weight, like.shape, (axis,))


def pick(scores: Array, target: Array, axis: int) -> tuple[Array, Array, Array]:
    """The scores of the target classes, the classes with others than those of ``scores`` replaced by 0, and whether they were not."""
    classes = scores.shape[axis]
    valid = (target >= 0) & (target < classes)
    index = jnp.where(valid, target, 0)
    if classes == 0:
        return jnp.zeros(target.shape, scores.dtype), index, valid
    picked = jnp.take_along_axis(scores, jnp.expand_dims(index, axis), axis, mode="promise_in_bounds")
    return jnp.squeeze(picked, axis), index, valid


def _nll(log_probs: Array, target: Array, weight: Array | None, ignore_index: int, reduction: str, smoothing: float = 0.0) -> Array:
    """The weighted negative log-likelihood of class indices, part of it spread over all classes for ``smoothing``."""
    axis = min(log_probs.ndim - 1, 1)
    ignored = target == ignore_index
    picked, index, valid = pick(log_probs, target, axis)
    scale = jnp.where(valid | ignored, 1, jnp.nan).astype(log_probs.dtype)
    if weight is not None and weight.size:
        scale = scale * weight[index]
    elements = -picked * scale
    if smoothing:
        spread = log_probs if weight is None else log_probs * _along(weight, log_probs, axis)
        elements = (1 - smoothing) * elements - smoothing / log_probs.shape[axis] * jnp.sum(spread, axis)
    elements, scale = (jnp.where(ignored, 0, x) for x in (elements, scale))
    return reduced(elements, reduction, jnp.sum(scale))


def _check_nll(input: Array, target: Array, weight: Any, size_average: Any, ignore_index: int, *_: Any) -> None:
    check_indices("nll_loss", input, target, ignore_index)


@loss_function(values=_check_nll)
def nll_loss(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
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
    _class_axis("nll_loss", input)
    _require_indices("nll_loss", input, target, weight)
    return _nll(input, target, weight, ignore_index, reduction)


def _check_cross_entropy(input: Array, target: Array, weight: Any, size_average: Any, ignore_index: int, *_: Any) -> None:
    check_indices("cross_entropy", input, target, ignore_index)


@loss_function(values=_check_cross_entropy)
def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
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
    who, axis = "cross_entropy", _class_axis("cross_entropy", input)
    checks.require(0 <= label_smoothing <= 1, who, "label_smoothing must be in [0, 1]", RuntimeError, label_smoothing=label_smoothing)
    if not _is_probabilities(who, input, target):
        _require_indices(who, input, target, weight)
        return _nll(jax.nn.log_softmax(input, axis), target, weight, ignore_index, reduction, label_smoothing)
    checks.require(ignore_index < 0, who, "probabilities cannot be ignored by index", RuntimeError, ignore_index=ignore_index)
    _require_weight(who, input, weight)
    classes = input.shape[axis]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    elements = target * jax.nn.log_softmax(input, axis)
    if weight is not None:
        elements = elements * _along(weight, elements, axis)
    return reduced(-jnp.sum(elements, axis), reduction)


@loss_function()
def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
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
    x, y, weight, pos_weight = broadcast(who, input=input, target=target, weight=weight, pos_weight=pos_weight)
    falling = jax.nn.softplus(-x)
    elements = (1 - y) * x + (falling if pos_weight is None else (1 + (pos_weight - 1) * y) * falling)
    return reduced(elements if weight is None else elements * weight, reduction)


def _require_same_shape(who: str, input: Array, target: Array) -> None:
    checks.require(input.shape == target.shape, who, "input and target must have one shape", ValueError, input=input, target=target)


@layer
class WeightedLoss(Loss):
    """Base of the losses with a class weight, which is a buffer."""

    class_weight: Any = config(default=None, alias="weight")
    weight: Array | None = buffer()

    def setup(self, key: Array) -> dict[str, Array | None]:
        return {"weight": constant(self, "weight", self.class_weight)}


@layer
class NLLLoss(WeightedLoss):
    """The negative log-likelihood of class indices, given log-probabilities.

    Shape: input (C), (N, C) or (N, C, d1, ...), target (), (N) or (N, d1, ...); output (), or that of target for reduction "none".

    Args:
        weight: the weight of each class, (C,); all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        ignore_index: a target that counts for nothing.
        reduction: "mean" (over the weights of the targets), "sum" or "none".

    State: the buffer ``weight`` (C,), where one is given.
    """

    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return nll_loss(input, target, s.weight, ignore_index=self.ignore_index, reduction=self.reduction)


@layer
class CrossEntropyLoss(WeightedLoss):
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

    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return cross_entropy(
            input, target, s.weight, ignore_index=self.ignore_index, reduction=self.reduction, label_smoothing=self.label_smoothing
        )


@layer
class BCEWithLogitsLoss(WeightedLoss):
    """The binary cross entropy of sigmoid(input) and a target, exact for logits of any size.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        weight: of each element, broadcastable to input; all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
        pos_weight: what the positive part of each element is multiplied by, broadcastable to input.

    State: the buffers ``weight`` and ``pos_weight``, where they are given.
    """

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"
    positive_weight: Any = config(default=None, alias="pos_weight")
    pos_weight: Array | None = buffer()

    def setup(self, key: Array) -> dict[str, Array | None]:
        return {**super().setup(key), "pos_weight": constant(self, "pos_weight", self.positive_weight)}

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return binary_cross_entropy_with_logits(input, target, s.weight, reduction=self.reduction, pos_weight=s.pos_weight)
