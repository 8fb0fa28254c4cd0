"""Arrays that XLA:CPU is made to write to memory before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .taps import count

Array = jax.Array

_stored = Primitive("stored")
# Smaller arrays are in the cache, and a loop for each costs more.
_LEAST = 1 << 16


def stored(x: Array, least: int = _LEAST) -> Array:
    """``x``, a transposition or padding, which XLA:CPU would else compute again for each element of what reads it, without tiles.

    Or a product of matrices, of any size with ``least`` 0: XLA would else turn a transposition of it into others of its factors.
    """
    return _stored.bind(x) if count(x.shape) >= least and jnp.issubdtype(x.dtype, jnp.floating) else x


def _loop(x: Array) -> Array:
    """``x`` through a loop of no turns, which XLA can neither know nor fuse: it takes a microsecond and no copy."""

    def turns(x: Array) -> Array:
        return lax.squeeze(lax.slice(x, [0] * x.ndim, [1] * x.ndim), range(x.ndim)) < -jnp.inf

    return lax.while_loop(turns, jnp.negative, x)


def _batch(arrays: Sequence[Array], dims: Sequence[Any]) -> tuple[Array, Any]:
    return _stored.bind(*arrays), dims[0]


_stored.def_impl(jax.jit(_loop))
_stored.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(_stored, mlir.lower_fun(_loop, multiple_results=False))
ad.deflinear2(_stored, lambda cotangent, _: [_stored.bind(cotangent)])
batching.primitive_batchers[_stored] = _batch
