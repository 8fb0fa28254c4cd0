"""What is done with a loss's elements, decoded in one place."""

from __future__ import annotations

import warnings
from typing import Literal

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.spec import Layer, layer

Array = jax.Array
Reduction = Literal["none", "mean", "sum"]


def resolve(who: object, reduction: str, size_average: bool | None, reduce: bool | None, *, also: tuple[str, ...] = ()) -> str:
    """The reduction that the arguments ask for; the deprecated ``size_average`` and ``reduce`` win where they are given.

    Raises:
        ValueError: ``reduction`` is not "none", "mean", "sum" or one of ``also``.
    """
    if size_average is not None or reduce is not None:
        old = "none" if reduce is False else "sum" if size_average is False else "mean"
        name = who if isinstance(who, str) else type(who).__name__
        warnings.warn(f"{name}: size_average and reduce are deprecated, use reduction={old!r}", FutureWarning, stacklevel=3)
        return old
    checks.choice(who, "reduction", reduction, ("none", "mean", "sum", *also))
    return reduction


def reduced(elements: Array, reduction: str) -> Array:
    """The elements, their mean, or their sum. The mean of nothing is NaN, as in torch."""
    if reduction == "none":
        return elements
    return jnp.mean(elements) if reduction == "mean" else jnp.sum(elements)


@layer
class Loss(Layer):
    """Base of all losses: decodes the reduction once, at construction."""

    size_average: bool | None = None
    reduce: bool | None = None
    reduction: str = "mean"

    def validate(self) -> None:
        """Store the reduction that the arguments ask for."""
        if self.size_average is not None or self.reduce is not None:
            self._set(reduction=resolve(self, self.reduction, self.size_average, self.reduce), size_average=None, reduce=None)
