"""Causal masks of unequal lengths, as torch.nn.attention.bias."""

from __future__ import annotations

from ..core import checks
from ..layers.attention import CausalBias as CausalBias
from ..layers.attention import CausalVariant as CausalVariant


def _bias(who: str, variant: CausalVariant, size: tuple[int, ...]) -> CausalBias:
    checks.require(len(size) == 2, who, "there must be two sizes", AssertionError, size=size)
    return CausalBias(variant, *(checks.integer(who, "size", n, 0) for n in size))


def causal_upper_left(*size: int) -> CausalBias:
    """The causal mask of ``size`` = (queries, keys) in which the first query sees the first key only."""
    return _bias("causal_upper_left", CausalVariant.UPPER_LEFT, size)


def causal_lower_right(*size: int) -> CausalBias:
    """The causal mask of ``size`` = (queries, keys) in which the last query sees all keys."""
    return _bias("causal_lower_right", CausalVariant.LOWER_RIGHT, size)
