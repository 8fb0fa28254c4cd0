"""The cross entropy of a linear map's outputs, without ever holding all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.spec import Layer, buffer, config, layer
from ..kernels import linear_cross_entropy as kernel
from ..kernels.linear_cross_entropy import Head
from ..kernels.sums import sum_last
from ..layers.linear import Linear
from .classification import require_smoothing, require_target, target_scale
from .reduction import Loss, constant, loss_function, reduced

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LinearCrossEntropyOptions:
    """How many rows :func:`linear_cross_entropy` does at once, with torch's names. Of each it holds few logits at a time anyway.

    Args:
        allow_retain_graph: accepted; every gradient may be taken more than once.
        batch_chunk_size: rows done at once.
        chunking_method: "auto" for 4096 rows; "aspect_ratio:n" for as many as have all their logits in an n-th of the size of
            the input; None goes by ``batch_chunk_size`` alone, all at once when that is None.
        acc_policy: accepted; logits and sums are float32 at least.
        acc_dtype: accepted, as ``acc_policy``.

    Raises:
        ValueError: a value is none of these.
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: str = "auto"
    acc_dtype: Any = None

    def __post_init__(self) -> None:
        checks.choice(self, "acc_policy", self.acc_policy, ("auto", "accurate", "balanced", "compact"))
        name, _, factor = (self.chunking_method or "auto").partition(":")
        ok = (name == "auto" and not factor) or (name == "aspect_ratio" and (factor or "1").isdigit() and int(factor or 1) > 0)
        checks.require(ok, self, "chunking_method must be None, 'auto' or 'aspect_ratio:n'", chunking_method=self.chunking_method)
        if self.batch_chunk_size is not None:
            checks.require(isinstance(self.batch_chunk_size, int), self, "batch_chunk_size must be an int", got=self.batch_chunk_size)
            checks.integer(self, "batch_chunk_size", self.batch_chunk_size, 1)


def _check_target(input: Array, linear_weight: Array, target: Array, *, ignore_index: int | None = None, **_: Any) -> None:
    if target.ndim < input.ndim + linear_weight.ndim - 2 and jnp.issubdtype(target.dtype, jnp.integer):
        ignored = -100 if ignore_index is None else ignore_index
        checks.index_range("linear_cross_entropy", "target", target, linear_weight.shape[0], also=ignored)


@loss_function(values=_check_target)
def linear_cross_entropy(
    input: Array,
    linear_weight: Array,
    target: Array,
    *,
    linear_bias: Array | None = None,
    weight: Array | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Array:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)``, holding the logits of few classes at a time.

    The backward pass computes the logits again.

    Shape: input (N, F) or (F); linear_weight (C, F) or (C, d1, ..., F), linear_bias the same without F; target and output as of
        :func:`cross_entropy` for logits (N, C, d1, ...) or (C).

    Args:
        weight, reduction, label_smoothing: as of :func:`cross_entropy`.
        ignore_index: as there; None is -100 for class indices, and the only value for probabilities.
        options: how many rows are done at once; 4096 when None.

    Raises:
        IndexError, ValueError, RuntimeError: as :func:`cross_entropy`, and for shapes that do not fit together.

    Differs from torch: it goes by chunks without ``options`` too, and for every kind of target, and is differentiable in every way.
    """
    who = "linear_cross_entropy"
    checks.rank(who, input, (1, 2))
    checks.require(linear_weight.ndim >= 2, who, "linear_weight must have at least 2 dimensions", RuntimeError, linear_weight=linear_weight)
    *classes, features = linear_weight.shape
    sizes = {"input": input, "linear_weight": linear_weight}
    checks.require(input.shape[-1] == features, who, "the last dimensions of input and linear_weight must be equal", RuntimeError, **sizes)
    checks.same_dtype(who, input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    fits = linear_bias is None or linear_bias.shape == tuple(classes)
    checks.require(fits, who, f"linear_bias must have shape {tuple(classes)}", RuntimeError, linear_bias=linear_bias)
    checks.require(len(classes) == 1 or input.ndim == 2, who, "a loss of K dimensions needs a batched input", RuntimeError, **sizes)
    logits = jax.ShapeDtypeStruct((*input.shape[:-1], *classes), input.dtype)
    probable = target.shape == logits.shape
    checks.require(not probable or ignore_index is None, who, "probabilities cannot be ignored by index", RuntimeError, got=ignore_index)
    ignored = -100 if ignore_index is None else ignore_index
    require_target(who, logits, target, weight, ignored, label_smoothing)

    shape = classes[0], math.prod(classes[1:])
    head = Head(linear_weight.reshape(*shape, features), None if linear_bias is None else linear_bias.reshape(shape), weight)
    x = jnp.atleast_2d(input)
    if probable:
        elements = kernel.elements(x, head, target.reshape(len(x), *shape), None, label_smoothing, options)
        return reduced(elements.reshape(*input.shape[:-1], *classes[1:]), reduction)
    scale = target_scale(target, weight, classes[0], ignored, input.dtype)
    found = kernel.elements(x, head, target.reshape(len(x), -1), scale.reshape(len(x), -1), label_smoothing, options)
    return reduced(jnp.where(target == ignored, 0, found.reshape(target.shape)), reduction, sum_last(scale, scale.ndim))


@layer
class LinearCrossEntropyLoss(Loss):
    """A linear map to classes and the cross entropy of its outputs in one, holding the logits of few classes at a time.

    Shape: input (N, in_features) or (in_features); target and output as of CrossEntropyLoss for logits (N, num_classes,
        *out_features) or (num_classes).

    Args:
        in_features: size of each input sample.
        num_classes: number of classes, C.
        out_features: the further dimensions of the logits.
        bias: whether the map has a bias.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.
        reduction: "mean" (over the weights of the target indices), "sum" or "none".
        weight: the weight of each class, (C,); all one when None.
        ignore_index: a target index that counts for nothing; None is -100.
        label_smoothing: how much of the target distribution is made uniform, in [0, 1].
        options: how many rows are done at once; see :class:`LinearCrossEntropyOptions`.

    State: ``linear``, a Linear to C times the product of ``out_features``; the buffer ``weight`` (C,), where one is given.
    """

    in_features: int
    num_classes: int
    out_features: tuple[int, ...] = ()
    use_bias: bool = config(default=False, alias="bias")
    device: Any = None
    dtype: Any = None
    reduction: str = "mean"
    class_weight: Any = config(default=None, alias="weight")
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    options: LinearCrossEntropyOptions | None = None
    weight: Array | None = buffer()

    def validate(self) -> None:
        super().validate()
        weight, smoothing = constant(self, "weight", self.class_weight), self.label_smoothing
        fits = weight is None or weight.shape == (self.num_classes,)
        checks.require(fits, self, "weight must have one element per class", RuntimeError, weight=weight, num_classes=self.num_classes)
        require_smoothing(self, smoothing)
        self._set(out_features=tuple(self.out_features))

    def parts(self) -> Mapping[str, Layer]:
        outputs = math.prod(self.out_features, start=self.num_classes)
        return {"linear": Linear(self.in_features, outputs, self.use_bias, self.device, self.dtype)}

    def compute(self, s: Any, input: Array, target: Array) -> Array:
        # The one place where a layer reads a child's arrays: to call the child would be to hold all logits.
        matrix, bias, classes = s.linear.weight, s.linear.bias, (self.num_classes, *self.out_features)
        matrix, bias = jnp.reshape(matrix, (*classes, -1)), None if bias is None else jnp.reshape(bias, classes)
        return linear_cross_entropy(input, matrix, target, linear_bias=bias, weight=s.weight, **self._shown())

    def extra_repr(self) -> str:
        head = f"in_features={self.in_features}, num_classes={self.num_classes}, out_features={self.out_features}, bias={self.use_bias}"
        return ", ".join([head, *(f"{name}={value}" for name, value in self._shown().items())])

    def _shown(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("reduction", "ignore_index", "label_smoothing", "options")}
