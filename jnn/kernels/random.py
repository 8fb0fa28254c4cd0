"""Random choices of what is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import foreign
from .platform import by_library

Array = jax.Array

_GENERATOR = "threefry2x32"


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """True with the probability ``1 - rate``: what ``jax.random.bernoulli`` gives for the key, to the bit."""
    share = np.float32(1 - rate)
    if not by_library() or not _known(key) or not all(isinstance(n, int) for n in shape):
        return jax.random.bernoulli(key, share, shape)
    return _run(shape, jax.random.key_data(key), jnp.full(1, share))[0]


def _known(key: Array) -> bool:
    """Whether the library draws the numbers that JAX would for the key."""
    raw = key.shape == (2,) and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not raw and key.shape:
        return False
    name = getattr(jax.config, "jax_default_prng_impl", None) if raw else str(jax.random.key_impl(key))
    return name == _GENERATOR and bool(getattr(jax.config, "jax_threefry_partitionable", False))


def _kept(shape: tuple[int, ...], data: Array, share: Array) -> tuple[Array]:
    return (jax.random.bernoulli(jax.random.wrap_key_data(data, impl=_GENERATOR), share[0], shape),)


_run = foreign("jnn_kept", _kept, lambda _: {})
