"""Activations that XLA:CPU computes slowly: its ``log1p`` takes twice the time of ``log``, and sigmoids that gradients need are stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import Arrays, by_arrays
from .taps import count

Array = jax.Array
# Fewer numbers than these are not worth a call of the library.
_LEAST = 1 << 12


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """``log(1 + exp(x))`` for floats, to the digits of their type.

    Source: Kahan's ``log(1 + e) = log(u) e / (u - 1)`` with ``u`` the rounded ``1 + e``, whose error both factors share.
    """
    e = jnp.exp(-jnp.abs(x))
    u = 1 + e
    below = u == 1
    return jnp.maximum(x, 0) + jnp.where(below, e, jnp.log(u) * (e / jnp.where(below, 1, u - 1)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * moved


class _Scale(NamedTuple):
    beta: float
    threshold: float


def scaled(x: Array, beta: float, threshold: float) -> Array:
    """``log(1 + exp(beta x)) / beta``, and ``x`` itself where ``beta x > threshold``."""
    return (_scaled if count(x.shape) >= _LEAST else _as_defined)(_Scale(beta, threshold), x)[0]


def _as_defined(scale: _Scale, x: Array) -> Arrays:
    z = x * scale.beta
    return (jnp.where(z > scale.threshold, x, softplus(z) / scale.beta),)


def _attributes(scale: _Scale) -> dict[str, Any]:
    return {name: np.float64(value) for name, value in scale._asdict().items()}


def silu(x: Array) -> Array:
    """``x sigmoid(x)``."""
    return (_silu if count(x.shape) >= _LEAST else _silu_as_defined)(None, x)[0]


def _silu_as_defined(_: None, x: Array) -> Arrays:
    return (x * jax.nn.sigmoid(x),)


_scaled = by_arrays("jnn_softplus", _as_defined, _attributes)
# Without gradients XLA joins it with what is before and behind: 0.6 to 0.8 of the time of large images.
_silu = by_arrays("jnn_silu", _silu_as_defined, lambda _: {}, _silu_as_defined)
