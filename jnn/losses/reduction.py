"""What all losses share: the reduction, its deprecated arguments, and float32 for half types."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Constant, Layer, layer
from ..kernels.sums import sum_last

Array = jax.Array
P = ParamSpec("P")
R = TypeVar("R")
# What the deprecated size_average and reduce may be.
Flag = bool | None
REDUCTIONS = ("none", "mean", "sum")


def resolve(who: object, reduction: str, size_average: Flag, reduce: Flag, allowed: tuple[str, ...], level: int) -> str:
    """The reduction that the arguments ask for; the deprecated ``size_average`` and ``reduce`` win where they are given.

    Raises:
        ValueError: ``reduction`` is not one of ``allowed``.
    """
    if size_average is not None or reduce is not None:
        old = "mean" if size_average in (None, True) else "sum"
        reduction = "none" if reduce is not None and not reduce else old
        warnings.warn(f"{checks.label(who)}: size_average and reduce are deprecated, use reduction={reduction!r}", stacklevel=level + 1)
    elif reduction == "elementwise_mean":
        warnings.warn(f"{checks.label(who)}: reduction='elementwise_mean' is deprecated, use reduction='mean'", stacklevel=level + 1)
        reduction = "mean"
    checks.choice(who, "reduction", reduction, allowed)
    return reduction


def reduced(elements: Array, reduction: str, count: Array | float | None = None, *, plain: bool = False) -> Array:
    """The elements, their mean (over ``count`` where it is given), or their sum. The mean of nothing is NaN, as in torch.

    ``plain`` are elements that XLA:CPU computes with vectors along with the sum, as it does where nothing is chosen: that is faster then.
    """
    if reduction == "none":
        return elements
    total = jnp.sum(elements) if plain else sum_last(elements, elements.ndim)
    return total if reduction == "sum" else total / (elements.size if count is None else count)


def loss_function(
    *, values: Callable[..., None] | None = None, allowed: tuple[str, ...] = REDUCTIONS, jit: bool = True
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a public loss: :func:`core.function.function`, and what all losses do first.

    The body sees one decoded ``reduction``, and bfloat16 and float16 arrays as float32; its result is cast back.
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(fn)
        run = function(jit=jit, values=values)(dtypes.in_float32(fn) if jit else fn)

        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
            old = {name: given[name] for name in ("size_average", "reduce") if name in given}
            reduction = resolve(fn.__name__, given["reduction"], old.get("size_average"), old.get("reduce"), allowed, 2)
            given.update(dict.fromkeys(old), reduction=reduction)
            return run(*bound.args, **bound.kwargs)

        return call

    return decorate


def hinge(x: Array) -> Array:
    """``max(x, 0)`` with torch's gradient of ``clamp_min``: 1 where x is 0."""
    return jnp.where(x < 0, 0, x)


def warn_of_shapes(input: Array, target: Array, *_: Any, **__: Any) -> None:
    """Warn, as torch does, where input and target would be broadcast: it is seldom meant."""
    if input.shape != target.shape:
        warnings.warn(f"input and target differ in shape and are broadcast: {input.shape} and {target.shape}", UserWarning, stacklevel=4)


@layer
class Loss(Layer):
    """Base of all losses: decodes the reduction once, at construction."""

    reductions: ClassVar[tuple[str, ...]] = REDUCTIONS

    def validate(self) -> None:
        config: Any = self
        old = (getattr(self, "size_average", None), getattr(self, "reduce", None))
        decoded = {} if old == (None, None) else {"size_average": None, "reduce": None}
        self._set(reduction=resolve(self, config.reduction, *old, self.reductions, 3), **decoded)

    def setup(self, key: Array) -> dict[str, Array | None]:
        config: Any = self
        return {"weight": constant(self, "weight", config.class_weight)} if hasattr(self, "class_weight") else {}


@layer
class PlainLoss(Loss):
    """Base of the losses whose arguments are the reduction alone, or begin with it."""

    size_average: Flag = None
    reduce: Flag = None
    reduction: str = "mean"


def constant(who: object, name: str, value: Any) -> Array | None:
    """The array of a weight given at construction, to be a buffer."""
    checks.require(value is None or isinstance(value, Constant), who, f"{name} must be an array or None", TypeError, **{name: value})
    return None if value is None else value.value
