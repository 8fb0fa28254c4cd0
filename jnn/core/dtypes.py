"""What dtype a thing has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from . import checks

P = ParamSpec("P")
R = TypeVar("R")


def canonical(who: object, dtype: Any) -> np.dtype:
    """``dtype`` as a numpy dtype; a 64-bit one is refused while JAX's x64 mode is off, for JAX would narrow it silently."""
    dtype = np.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        checks.fail(who, f"{dtype.name} needs JAX's x64 mode, jax.config.update('jax_enable_x64', True)", TypeError, dtype=dtype)
    return dtype


def parameter(who: object, dtype: Any) -> np.dtype:
    """The dtype of a new parameter: float32 unless another is asked for, as in torch."""
    return np.dtype(np.float32) if dtype is None else canonical(who, dtype)


def accumulator(dtype: Any) -> np.dtype:
    """The dtype in which sums and statistics over values of ``dtype`` are taken: at least float32."""
    return np.dtype(jnp.promote_types(dtype, np.float32))


def index() -> np.dtype:
    """torch's int64, or int32 while JAX's x64 mode is off."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.int64))


def in_float32(fn: Callable[P, R]) -> Callable[P, R]:
    """``fn`` with half arrays widened, and its result in the dtype they promote to."""

    def is_float(x: Any) -> bool:
        return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        floats = [x.dtype for x in (*args, *kwargs.values()) if is_float(x)]
        if not floats or (dtype := jnp.result_type(*floats)).itemsize > 2:
            return fn(*args, **kwargs)
        args = tuple(x.astype(np.float32) if is_float(x) else x for x in args)
        out: Any = fn(*args, **{k: x.astype(np.float32) if is_float(x) else x for k, x in kwargs.items()})
        return out.astype(dtype)

    return call
