"""Losses that are zero beyond a margin, and their smooth form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.spec import Layer, buffer, config, layer
from ..kernels.activations import softplus
from ..kernels.gather import pick
from ..layers.distance import PairwiseDistance, pairwise_distance
from .reduction import Flag, Loss, PlainLoss, constant, hinge, loss_function, reduced

Array = jax.Array


@loss_function()
def hinge_embedding_loss(
    input: Array, target: Array, margin: float = 1.0, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean"
) -> Array:
    """The distance ``input`` where target is 1, ``max(0, margin - input)`` where it is -1, and their sum where it is neither.

    Shape: input (*), target the same or broadcastable; output () or (*) for reduction "none".
    """
    x, y = checks.broadcast("hinge_embedding_loss", input=input, target=target)
    return reduced(jnp.where(y != 1, hinge(margin - x), 0) + jnp.where(y != -1, x, 0), reduction)


@loss_function()
def soft_margin_loss(input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean") -> Array:
    """``log(1 + exp(-target input))`` for targets of 1 and -1.

    Shape: input (*), target the same or broadcastable; output () or (*) for reduction "none".

    Differs from torch: exact for inputs of any size, where torch overflows to infinity with a NaN gradient.
    """
    x, y = checks.broadcast("soft_margin_loss", input=input, target=target)
    return reduced(softplus(-y * x), reduction)


@loss_function()
def margin_ranking_loss(
    input1: Array, input2: Array, target: Array, margin: float = 0, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean"
) -> Array:
    """``max(0, margin - target (input1 - input2))``: input1 shall be the larger where target is 1, the smaller where it is -1.

    Shape: input1, input2 and target with one number of dimensions, broadcast; output (), or their shape for reduction "none".

    Raises:
        RuntimeError: the numbers of dimensions differ, or the shapes do not broadcast.
    """
    given = {"input1": input1, "input2": input2, "target": target}
    _require_one_rank("margin_ranking_loss", given)
    a, b, y = checks.broadcast("margin_ranking_loss", **given)
    return reduced(hinge(margin - y * (a - b)), reduction)


def _require_one_rank(who: str, arrays: Mapping[str, Array]) -> None:
    ranks = {x.ndim for x in arrays.values()}
    checks.require(len(ranks) == 1, who, f"{', '.join(arrays)} must have one number of dimensions", RuntimeError, **arrays)


@loss_function()
def cosine_embedding_loss(
    input1: Array, input2: Array, target: Array, margin: float = 0, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean"
) -> Array:
    """``1 - cos(input1, input2)`` where target is 1, ``max(0, cos(input1, input2) - margin)`` where it is -1, else 0.

    1e-12 is added to both squared lengths.

    Shape: input1 and input2 (N, D) and target (N), or (D) and (); output () or the shape of target for reduction "none".

    Raises:
        RuntimeError: the numbers of dimensions are others, or the shapes do not broadcast.
    """
    who, given = "cosine_embedding_loss", {"input1": input1, "input2": input2}
    checks.rank(who, target, (0, 1), name="target")
    for name, x in given.items():
        checks.rank(who, x, (target.ndim + 1,), name=name)
    a, b = checks.broadcast(who, **given)
    dtype = jnp.promote_types(jnp.result_type(a, b), np.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    lengths = (jnp.sqrt(jnp.sum(jnp.square(v), -1) + 1e-12) for v in (a, b))
    cos, y = checks.broadcast(who, inputs=jnp.sum(a * b, -1) / (next(lengths) * next(lengths)), target=target)
    return reduced(jnp.where(y == 1, 1 - cos, 0) + jnp.where(y == -1, hinge(cos - margin), 0), reduction)


def _rows(who: str, input: Array) -> Array:
    """``input`` as (N, C): one row where there is no batch, one class where there is nothing else.

    Raises:
        RuntimeError: it has more dimensions, or no classes.
    """
    ok = input.ndim <= 2 and (input.ndim == 0 or input.shape[-1] > 0)
    checks.require(ok, who, "input must be (N, C) or (C), with at least one class", RuntimeError, input=input)
    return input.reshape((-1, input.shape[-1] if input.ndim else 1)) if input.ndim < 2 else input


def _require_integer(who: str, target: Array) -> None:
    checks.require(jnp.issubdtype(target.dtype, np.integer), who, "target must hold integers", RuntimeError, dtype=target.dtype)


def _check_multi_margin(input: Array, target: Array, *_: Any) -> None:
    if input.ndim <= 2:
        checks.index_range("multi_margin_loss", "target", target, (*input.shape, 1)[max(input.ndim - 1, 0)], exc=RuntimeError)


@loss_function(values=_check_multi_margin)
def multi_margin_loss(
    input: Array,
    target: Array,
    p: int = 1,
    margin: float = 1.0,
    weight: Array | None = None,
    size_average: Flag = None,
    reduce: Flag = None,
    reduction: str = "mean",
) -> Array:
    """``sum_(j != y) weight[y] max(0, margin - input[y] + input[j])^p / C`` for the right class y.

    Shape: input (N, C) and target (N), or (C) and (); weight (C); output (), or the shape of target for reduction "none".

    Raises:
        ValueError: p is neither 1 nor 2, or weight is not one-dimensional.
        RuntimeError: a known target is outside [0, C) (a traced one gives NaN), or a shape is another.
    """
    who = "multi_margin_loss"
    x = _rows(who, input)
    n, classes = x.shape
    _require_multi_margin(who, p, weight)
    _require_integer(who, target)
    ok = target.ndim <= 1 and target.size == n
    checks.require(ok, who, "target must have one class for each row of input", RuntimeError, input=input, target=target)
    ok = weight is None or weight.shape == (classes,)
    checks.require(ok, who, "weight must have one element per class", RuntimeError, input=input, weight=weight)
    right, index, valid = pick(x, target.reshape(n), 1)
    z = margin - right[:, None] + x
    terms = jnp.where((z > 0) & (jnp.arange(classes)[None] != index[:, None]), z, 0) ** p
    elements = jnp.mean(terms, 1) * jnp.where(valid, 1 if weight is None else weight[index], jnp.nan)
    return reduced(elements.reshape(target.shape), reduction)


def _require_multi_margin(who: object, p: Any, weight: Any) -> None:
    checks.require(p in (1, 2), who, "p must be 1 or 2", p=p)
    checks.require(weight is None or weight.ndim == 1, who, "weight must be one-dimensional", weight=weight)


def _check_multilabel_margin(input: Array, target: Array, *_: Any) -> None:
    if input.ndim <= 2 and input.shape == target.shape:
        classes = input.shape[-1] if input.ndim else 1
        checks.index_range("multilabel_margin_loss", "target", target, classes, also=-1, exc=RuntimeError)


@loss_function(values=_check_multilabel_margin)
def multilabel_margin_loss(input: Array, target: Array, size_average: Flag = None, reduce: Flag = None, reduction: str = "mean") -> Array:
    """``sum_(t, j) max(0, 1 - input[t] + input[j]) / C`` over right classes t and wrong classes j.

    The right classes are those that stand in target before its first -1.

    Shape: input (N, C) or (C), target the same; output (), or (N) or () for reduction "none".

    Raises:
        RuntimeError: a known target is outside [-1, C) (a traced one gives NaN), or a shape is another.
    """
    who = "multilabel_margin_loss"
    x = _rows(who, input)
    checks.require(target.shape == input.shape, who, "target must have the shape of input", RuntimeError, input=input, target=target)
    _require_integer(who, target)
    y = target.reshape(x.shape)
    listed = jnp.cumsum(y == -1, 1) == 0
    right, index, valid = pick(x, y, 1)
    rows = jnp.arange(x.shape[0])[:, None]
    is_right = jnp.zeros(x.shape, bool).at[rows, index].max(listed & valid)
    z = 1 - right[:, :, None] + x[:, None, :]
    terms = jnp.where((z > 0) & listed[:, :, None] & ~is_right[:, None, :], z, 0)
    legal = jnp.all((y >= -1) & (y < x.shape[1]), 1)
    elements = jnp.sum(terms, (1, 2)) / x.shape[1] * jnp.where(legal, 1, jnp.nan)
    return reduced(elements.reshape(input.shape[:-1]), reduction)


def _require_margin(who: object, margin: float) -> None:
    checks.require(margin > 0, who, "margin must be positive", margin=margin)


def _triplet(
    who: str, arrays: Mapping[str, Array], distance: Callable[[Array, Array], Array], margin: float, swap: bool, reduction: str
) -> Array:
    _require_margin(who, margin)
    _require_one_rank(who, arrays)
    anchor, positive, negative = arrays.values()
    far = distance(anchor, negative)
    if swap:
        far = jnp.minimum(far, distance(positive, negative))
    near, far = checks.broadcast(who, positive=distance(anchor, positive), negative=far)
    return reduced(hinge(margin + near - far), reduction)


@loss_function()
def triplet_margin_loss(
    anchor: Array,
    positive: Array,
    negative: Array,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: Flag = None,
    reduce: Flag = None,
    reduction: str = "mean",
) -> Array:
    """``max(0, margin + d(anchor, positive) - d(anchor, negative))`` with ``d(a, b) = ||a - b + eps||_p`` over the last dimension.

    With ``swap`` the distance to the negative is the smaller of those from the anchor and from the positive.

    Shape: anchor, positive and negative (N, D) or (D), broadcast; output (), or (N) or () for reduction "none".

    Raises:
        ValueError: margin is not positive.
        RuntimeError: the numbers of dimensions differ, or the shapes do not broadcast.
    """
    arrays = {"anchor": anchor, "positive": positive, "negative": negative}
    return _triplet("triplet_margin_loss", arrays, lambda a, b: pairwise_distance(a, b, p, eps), margin, swap, reduction)


@loss_function(jit=False)
def triplet_margin_with_distance_loss(
    anchor: Array,
    positive: Array,
    negative: Array,
    *,
    distance_function: Callable[[Array, Array], Array] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Array:
    """``max(0, margin + d(anchor, positive) - d(anchor, negative))`` with any distance ``d``, :func:`pairwise_distance` by default.

    With ``swap`` the distance to the negative is the smaller of those from the anchor and from the positive.

    Shape: anchor, positive and negative (N, *); output () or what ``distance_function`` gives for reduction "none".

    Raises:
        ValueError: margin is not positive.
        RuntimeError: the numbers of dimensions differ, or the distances do not broadcast.
    """
    arrays = {"anchor": anchor, "positive": positive, "negative": negative}
    distance = pairwise_distance if distance_function is None else distance_function
    return _triplet("triplet_margin_with_distance_loss", arrays, distance, margin, swap, reduction)


@layer
class _MarginLoss(Loss):
    margin: float = 0.0
    size_average: Flag = None
    reduce: Flag = None
    reduction: str = "mean"


@layer
class HingeEmbeddingLoss(_MarginLoss):
    """The distance x where the target is 1 and ``max(0, margin - x)`` where it is -1.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        margin: the distance that unlike pairs shall have.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    margin: float = 1.0

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return hinge_embedding_loss(input, target, self.margin, reduction=self.reduction)


@layer
class SoftMarginLoss(PlainLoss):
    """``log(1 + exp(-y x))`` for targets y of 1 and -1, exact for inputs of any size.

    Shape: input (*), target (*); output (), or (*) for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return soft_margin_loss(input, target, reduction=self.reduction)


@layer
class MarginRankingLoss(_MarginLoss):
    """``max(0, margin - y (x1 - x2))``: x1 shall be the larger where y is 1, the smaller where it is -1.

    Shape: input1, input2 and target (N) or (); output (), or (N) for reduction "none".

    Args:
        margin: by how much.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input1: Array, input2: Array, target: Array) -> Array:
        return margin_ranking_loss(input1, input2, target, self.margin, reduction=self.reduction)


@layer
class CosineEmbeddingLoss(_MarginLoss):
    """``1 - cos(x1, x2)`` where the target is 1, ``max(0, cos(x1, x2) - margin)`` where it is -1.

    Shape: input1 and input2 (N, D) and target (N), or (D) and (); output (), or the shape of target for reduction "none".

    Args:
        margin: the cosine that unlike pairs may have, in [-1, 1].
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input1: Array, input2: Array, target: Array) -> Array:
        return cosine_embedding_loss(input1, input2, target, self.margin, reduction=self.reduction)


@layer
class MultiMarginLoss(Loss):
    """``sum_(j != y) weight[y] max(0, margin - x[y] + x[j])^p / C`` for the right class y.

    Shape: input (N, C) and target (N), or (C) and (); output (), or the shape of target for reduction "none".

    Args:
        p: 1 or 2.
        margin: by how much the right class shall lead.
        weight: the weight of each class, (C,); all one when None.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".

    State: the buffer ``weight`` (C,), where one is given.
    """

    p: int = 1
    margin: float = 1.0
    class_weight: Any = config(default=None, alias="weight")
    size_average: Flag = None
    reduce: Flag = None
    reduction: str = "mean"
    weight: Array | None = buffer()

    def validate(self) -> None:
        super().validate()
        _require_multi_margin(self, self.p, constant(self, "weight", self.class_weight))

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return multi_margin_loss(input, target, self.p, self.margin, s.weight, reduction=self.reduction)


@layer
class MultiLabelMarginLoss(PlainLoss):
    """``sum_(t, j) max(0, 1 - x[t] + x[j]) / C`` over the right classes t, which target lists up to its first -1, and the others j.

    Shape: input (N, C) or (C), target the same; output (), or (N) or () for reduction "none".

    Args:
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".
    """

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        return multilabel_margin_loss(input, target, reduction=self.reduction)


@layer
class TripletMarginLoss(Loss):
    """``max(0, margin + d(anchor, positive) - d(anchor, negative))`` with ``d(a, b) = ||a - b + eps||_p``.

    Shape: anchor, positive and negative (N, D) or (D); output (), or (N) or () for reduction "none".

    Args:
        margin: by how much the negative shall be farther than the positive; positive.
        p: the degree of the norm.
        eps: added to each difference.
        swap: whether the distance to the negative is the smaller of those from the anchor and from the positive.
        size_average, reduce: deprecated; they override ``reduction``.
        reduction: "mean", "sum" or "none".

    Reference: Balntas et al., "Learning local feature descriptors with triplets and shallow convolutional neural networks", 2016.
    """

    margin: float = 1.0
    p: float = 2.0
    eps: float = 1e-6
    swap: bool = False
    size_average: Flag = None
    reduce: Flag = None
    reduction: str = "mean"

    def validate(self) -> None:
        super().validate()
        _require_margin(self, self.margin)

    def compute(self, s: Any, anchor: Array, positive: Array, negative: Array) -> Array:
        return triplet_margin_loss(anchor, positive, negative, self.margin, self.p, self.eps, self.swap, reduction=self.reduction)


@layer
class TripletMarginWithDistanceLoss(Loss):
    """``max(0, margin + d(anchor, positive) - d(anchor, negative))`` with any distance.

    Shape: anchor, positive and negative (N, *); output (), or what ``distance_function`` gives for reduction "none".

    Args:
        distance_function: a function of two arrays, a layer or a module; ``PairwiseDistance()`` when None.
        margin: by how much the negative shall be farther than the positive; positive.
        swap: whether the distance to the negative is the smaller of those from the anchor and from the positive.
        reduction: "mean", "sum" or "none".
    """

    distance: Any = config(default=None, alias="distance_function")
    margin: float = 1.0
    swap: bool = False
    reduction: str = "mean"

    def validate(self) -> None:
        super().validate()
        _require_margin(self, self.margin)
        if self.distance is None:
            self._set(distance=PairwiseDistance())

    def parts(self) -> Mapping[str, Layer]:
        is_layer = hasattr(self.distance, "compute") or hasattr(self.distance, "named_modules")
        return {"distance_function": self.distance} if is_layer else {}

    def compute(self, s: Any, anchor: Array, positive: Array, negative: Array) -> Array:
        distance = s.distance_function if "distance_function" in self.parts() else self.distance
        return triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=distance, margin=self.margin, swap=self.swap, reduction=self.reduction
        )
