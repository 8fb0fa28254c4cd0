"""Which of three lowerings of the heavy primitives is taken: XLA's own, one written around XLA:CPU's slow ones, or jnn's library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

from . import library

Array = jax.Array

_native: ContextVar[bool | None] = ContextVar("jnn_native_lowering", default=None)
_library: ContextVar[bool] = ContextVar("jnn_library_lowering", default=True)


def native() -> bool:
    """Whether XLA's own lowering is taken: on everything but a CPU, unless :func:`lowering` says otherwise."""
    forced = _native.get()
    return jax.default_backend() != "cpu" if forced is None else forced


def by_library() -> bool:
    """Whether jnn's library is called where it can be: on a CPU, if it is there, unless :func:`lowering` says otherwise."""
    return _library.get() and not native() and library.loaded() is not None


@contextmanager
def lowering(*, native: bool, library: bool = True) -> Iterator[None]:
    """Trace with XLA's own lowerings, or with those for a CPU, by jnn's ``library`` or not. What was compiled outside stays as it is."""
    tokens = _native.set(native), _library.set(library)
    try:
        yield
    finally:
        _native.reset(tokens[0])
        _library.reset(tokens[1])


def exact_products() -> bool:
    """Whether ``jax.default_matmul_precision`` bars algorithms that multiply other numbers than those that are given."""
    return getattr(jax.config, "jax_default_matmul_precision", None) in ("highest", "float32")


def settled(x: Array) -> Array:
    """``x``, as one value that is computed before it is used: for what is broadcast to many elements.

    XLA:CPU would write it out once for each of those, into memory that is read again: a third of the time of a layer norm.
    """
    return x if native() else jax.lax.optimization_barrier(x)
