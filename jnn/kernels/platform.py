"""Whether XLA's own lowering of the heavy primitives is taken, or the one that is written around XLA:CPU's slow ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

Array = jax.Array

_forced: ContextVar[bool | None] = ContextVar("jnn_native_lowering", default=None)


def native() -> bool:
    """Whether XLA's own lowering is taken: on everything but a CPU, unless :func:`lowering` says otherwise."""
    forced = _forced.get()
    return jax.default_backend() != "cpu" if forced is None else forced


@contextmanager
def lowering(*, native: bool) -> Iterator[None]:
    """Trace with XLA's own lowerings, or with those for a CPU. What was compiled outside stays as it is."""
    token = _forced.set(native)
    try:
        yield
    finally:
        _forced.reset(token)


def settled(x: Array) -> Array:
    """``x``, as one value that is computed before it is used: for what is broadcast to many elements.

    XLA:CPU would write it out once for each of those, into memory that is read again: a third of the time of a layer norm.
    """
    return x if native() else jax.lax.optimization_barrier(x)
