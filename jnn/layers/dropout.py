"""Dropout, of elements and of whole channels."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks, dtypes, rng
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels import random
from ..kernels.pointwise import over_rows
from .rectifier import SELU_ALPHA, SELU_SCALE

Array = jax.Array


@function
def _masked(input: Array, key: Array, p: float, lead: int, alpha: bool) -> Array:
    """``input`` with a share ``p`` of the slices that its first ``lead`` dimensions index dropped, the rest scaled."""
    shape = (*input.shape[:lead], *(1,) * (input.ndim - lead))
    kept = random.kept(key, p, shape)

    def run(x: Array, kept: Array) -> Array:
        x = x.astype(dtypes.accumulator(input.dtype))
        if alpha:
            # What is dropped takes SELU's limit at minus infinity; then mean 0 and variance 1 are restored.
            low = -SELU_ALPHA * SELU_SCALE
            scale = 1 / math.sqrt((1 - p) * (1 + p * low**2))
            x = scale * (jnp.where(kept, x, low) - p * low)
        else:
            x = jnp.where(kept, x / (1 - p), 0)
        return x.astype(input.dtype)

    return over_rows(run, input, jnp.broadcast_to(kept, input.shape))


def _drop(who: str, input: Array, p: float, training: bool, key: Array | None, lead: int, alpha: bool = False) -> Array:
    checks.require(not (p < 0 or p > 1), who, "p must be in [0, 1]", p=p)
    if not training or p == 0 or not input.size:
        return input
    if p == 1:
        return jnp.zeros_like(input)
    checks.floating(who, "input", input)
    checks.require(input.ndim >= lead, who, "input must have a batch and a channel dimension", RuntimeError, **{"input.shape": input.shape})
    return _masked(input, rng.next_key(who, key), p, lead, alpha)


@function(jit=False)
def dropout(input: Array, p: float = 0.5, training: bool = True, inplace: bool = False, *, key: Array | None = None) -> Array:
    """Zero each element with probability ``p`` and divide the others by ``1 - p``, in training.

    Args:
        p: the probability of being dropped.
        training: whether to drop; the input is returned where not.
        inplace: accepted; changes nothing.
        key: feeds the mask; the running call's stream where None. One key gives one mask.

    Raises:
        ValueError: ``p`` is not in [0, 1].

    Differs from torch: a NaN or infinity that is dropped becomes 0.
    """
    return _drop("dropout", input, p, training, key, input.ndim)


@function(jit=False)
def dropout1d(input: Array, p: float = 0.5, training: bool = True, inplace: bool = False, *, key: Array | None = None) -> Array:
    """Zero whole channels with probability ``p``; arguments as :func:`dropout`.

    Shape: input (N, C, L) or (C, L).

    Raises:
        RuntimeError: the input has neither 2 nor 3 dimensions.
    """
    checks.rank("dropout1d", input, (2, 3))
    return _drop("dropout1d", input, p, training, key, input.ndim - 1)


@function(jit=False)
def dropout2d(input: Array, p: float = 0.5, training: bool = True, inplace: bool = False, *, key: Array | None = None) -> Array:
    """Zero whole channels with probability ``p``; arguments as :func:`dropout`.

    Shape: input (N, C, H, W). Other shapes are deprecated: the first two dimensions count as batch and channel, also of
        three, which are not taken for (C, H, W).
    """
    if input.ndim == 3:
        warnings.warn("dropout2d: 3D input is taken as (N, C, L); use dropout1d for that", UserWarning, stacklevel=3)
    elif input.ndim != 4:
        _warn_rank("dropout2d", input, "4D")
    return _drop("dropout2d", input, p, training, key, 2)


@function(jit=False)
def dropout3d(input: Array, p: float = 0.5, training: bool = True, inplace: bool = False, *, key: Array | None = None) -> Array:
    """Zero whole channels with probability ``p``; arguments as :func:`dropout`.

    Shape: input (N, C, D, H, W) or (C, D, H, W). Other shapes are deprecated: the first dimension counts as channel.
    """
    if input.ndim not in (4, 5):
        _warn_rank("dropout3d", input, "4D or 5D")
    return _drop("dropout3d", input, p, training, key, 2 if input.ndim == 5 else 1)


def _warn_rank(who: str, input: Array, wanted: str) -> None:
    warnings.warn(f"{who}: input should be {wanted}, got {input.ndim}D; use dropout to drop elements", UserWarning, stacklevel=4)


@function(jit=False)
def alpha_dropout(input: Array, p: float = 0.5, training: bool = False, inplace: bool = False, *, key: Array | None = None) -> Array:
    """Dropout that keeps mean 0 and variance 1, for inputs from SELU; arguments as :func:`dropout`.

    With ``m = -1.7581``, SELU's limit at minus infinity: ``a (x - p m)``, or ``a (m - p m)`` where dropped,
    ``a = ((1 - p) (1 + p m^2))^-1/2``.

    Reference: Klambauer et al., Self-Normalizing Neural Networks, 2017.
    """
    return _drop("alpha_dropout", input, p, training, key, input.ndim, alpha=True)


@function(jit=False)
def feature_alpha_dropout(
    input: Array, p: float = 0.5, training: bool = False, inplace: bool = False, *, key: Array | None = None
) -> Array:
    """:func:`alpha_dropout` of whole channels.

    Shape: input (N, C, *).
    """
    return _drop("feature_alpha_dropout", input, p, training, key, 2, alpha=True)


@layer
class _Dropout(Layer):
    p: float = 0.5
    inplace: bool = False

    def validate(self) -> None:
        checks.require(not (self.p < 0 or self.p > 1), self, "p must be in [0, 1]", p=self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


@layer
class Dropout(_Dropout):
    """Zeroes each element with probability ``p`` and divides the others by ``1 - p``, in training.

    Shape: input (*), output (*).

    Args:
        p: the probability of being dropped.
        inplace: accepted; changes nothing.

    Raises:
        ValueError: ``p`` is not in [0, 1].

    Reference: Hinton et al., Improving neural networks by preventing co-adaptation of feature detectors, 2012.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return dropout(input, self.p, s.training)


@layer
class Dropout1d(_Dropout):
    """Zeroes whole channels with probability ``p``; arguments as :class:`Dropout`.

    Shape: input (N, C, L) or (C, L), output the same.

    Reference: Tompson et al., Efficient Object Localization Using Convolutional Networks, 2014.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return dropout1d(input, self.p, s.training)


@layer
class Dropout2d(_Dropout):
    """Zeroes whole channels with probability ``p``; arguments as :class:`Dropout`.

    Shape: input (N, C, H, W), output the same. Three dimensions are (N, C, L), with a warning.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return dropout2d(input, self.p, s.training)


@layer
class Dropout3d(_Dropout):
    """Zeroes whole channels with probability ``p``; arguments as :class:`Dropout`.

    Shape: input (N, C, D, H, W) or (C, D, H, W), output the same.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return dropout3d(input, self.p, s.training)


@layer
class AlphaDropout(_Dropout):
    """Dropout that keeps mean 0 and variance 1, for inputs from SELU; arguments as :class:`Dropout`.

    Shape: input (*), output (*).

    Reference: Klambauer et al., Self-Normalizing Neural Networks, 2017.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return alpha_dropout(input, self.p, s.training)


@layer
class FeatureAlphaDropout(_Dropout):
    """:class:`AlphaDropout` of whole channels.

    Shape: input (N, C, *), output the same.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return feature_alpha_dropout(input, self.p, s.training)
