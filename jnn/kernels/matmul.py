"""Matrix products of which the gradients too read large matrices along their rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .multilinear import Like, multilinear
from .platform import native
from .stored import stored
from .taps import count

Array = jax.Array

# Of matrices with so many elements XLA:CPU takes twice as long for a product along the columns.
_LARGE = 1 << 18


def matmul(a: Array, b: Array, dtype: Any) -> Array:
    """``a @ b`` as ``dtype``."""
    large = max(count(a.shape[-2:]), count(b.shape[-2:]), count((a.shape[-2], b.shape[-1]))) >= _LARGE
    if large and not native() and a.shape[:-2] == b.shape[:-2] and a.dtype == b.dtype == dtype:
        return _matmul(None, a, b)
    return jnp.matmul(a, b, preferred_element_type=dtype)


def _transposed(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _by_left(_: None, g: Array, b: Array, a: Like) -> Array:
    return g @ _transposed(b)


def _by_right(_: None, g: Array, a: Array, b: Like) -> Array:
    """``a^T g``, for which the smaller of the two is transposed, or else the result."""
    if count(a.shape) <= count(g.shape):
        return stored(stored(_transposed(a)) @ g)
    return stored(_transposed(stored(stored(_transposed(g)) @ a)))


_matmul = multilinear(lambda _, a, b: a @ b, _by_left, _by_right)
