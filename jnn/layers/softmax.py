"""Softmax and what is made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes, rng
from ..core.derivatives import straight_through
from ..core.function import function
from ..core.spec import layer
from ..kernels import softmax as kernel
from .activation import Activation, unary

Array = jax.Array


def _warns(name: str) -> Callable[..., None]:
    """A check that warns on every call without ``dim``, compiled or not."""

    def check(input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> None:
        if dim is None:
            warnings.warn(f"{name}: choosing dim implicitly is deprecated, pass dim=", UserWarning, stacklevel=_stacklevel)

    return check


def _along(fn: Callable[..., Array], who: str, x: Array, dim: int | None, dtype: Any) -> Array:
    """``fn(x, axis)`` in the dtype asked for, half types by way of float32."""
    x = x if dtype is None else x.astype(dtypes.canonical(who, dtype))
    checks.require(jnp.issubdtype(x.dtype, np.floating), who, "input must be floating point", NotImplementedError, dtype=x.dtype)
    axis = checks.dim(who, (0 if x.ndim in (0, 1, 3) else 1) if dim is None else dim, x.ndim)
    return fn(jnp.atleast_1d(x).astype(dtypes.accumulator(x.dtype)), axis).astype(x.dtype).reshape(x.shape)


@function(values=_warns("softmax"))
def softmax(input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Array:
    """``exp(x_i) / sum_j exp(x_j)`` along ``dim``.

    A slice that holds +inf, or nothing but -inf, gives NaN.

    Args:
        dim: the dimension that sums to 1. None is deprecated: 0 for inputs of 0, 1 or 3 dimensions, else 1.
        dtype: what the input is converted to first.
    """
    return _along(kernel.softmax, "softmax", input, dim, dtype)


@function(values=_warns("softmin"))
def softmin(input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Array:
    """``exp(-x_i) / sum_j exp(-x_j)`` along ``dim``; arguments as :func:`softmax`."""
    return _along(kernel.softmin, "softmin", input, dim, dtype)


@function(values=_warns("log_softmax"))
def log_softmax(input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Array:
    """``x_i - log sum_j exp(x_j)`` along ``dim``; arguments as :func:`softmax`."""
    return _along(kernel.log_softmax, "log_softmax", input, dim, dtype)


@function(jit=False)
def gumbel_softmax(
    logits: Array, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1, *, key: Array | None = None
) -> Array:
    """``softmax((logits + g) / tau)`` along ``dim`` with ``g`` drawn from the Gumbel distribution.

    Args:
        logits: unnormalised log probabilities.
        tau: the temperature.
        hard: whether to give the one-hot vector of the largest, with the derivatives of the soft sample.
        eps: deprecated, has no effect.
        dim: the dimension that sums to 1.
        key: feeds the draw; the running call's stream where None.

    Reference: Jang et al., Categorical Reparameterization with Gumbel-Softmax, 2016.
    """
    if eps != 1e-10:
        warnings.warn("gumbel_softmax: eps is deprecated and has no effect", UserWarning, stacklevel=3)
    return _gumbel_softmax(logits, rng.next_key("gumbel_softmax", key), tau, hard, dim)


@unary
def _gumbel_softmax(logits: Array, key: Array, tau: float, hard: bool, dim: int) -> Array:
    soft = softmax((logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / tau, dim)
    if not hard:
        return soft
    axis, whole = checks.dim("gumbel_softmax", dim, soft.ndim), jnp.atleast_1d(soft)
    one_hot = jax.nn.one_hot(jnp.argmax(whole, axis), whole.shape[axis], dtype=soft.dtype, axis=axis)
    return straight_through(one_hot.reshape(soft.shape), soft)


# Where a warning points, seen from a layer: through compute, forward and the call of the module.
_FROM_LAYER = 7


@layer
class Softmax(Activation):
    """``exp(x_i) / sum_j exp(x_j)`` along ``dim``.

    Shape: input (*), output (*).

    Args:
        dim: the dimension that sums to 1. None is deprecated: 0 for inputs of 0, 1 or 3 dimensions, else 1.
    """

    dim: int | None = None

    def compute(self, s: Any, input: Array) -> Array:
        return softmax(input, self.dim, _FROM_LAYER)


@layer
class Softmin(Activation):
    """``exp(-x_i) / sum_j exp(-x_j)`` along ``dim``; arguments as :class:`Softmax`.

    Shape: input (*), output (*).
    """

    dim: int | None = None

    def compute(self, s: Any, input: Array) -> Array:
        return softmin(input, self.dim, _FROM_LAYER)


@layer
class LogSoftmax(Activation):
    """``x_i - log sum_j exp(x_j)`` along ``dim``; arguments as :class:`Softmax`.

    Shape: input (*), output (*).
    """

    dim: int | None = None

    def compute(self, s: Any, input: Array) -> Array:
        return log_softmax(input, self.dim, _FROM_LAYER)


@layer
class Softmax2d(Activation):
    """Softmax over the channels of every place of an image.

    Shape: input (N, C, H, W) or (C, H, W), output the same.

    Raises:
        ValueError: the input has neither 3 nor 4 dimensions.
    """

    def compute(self, s: Any, input: Array) -> Array:
        checks.rank(self, input, (3, 4), ValueError)
        return softmax(input, -3)
