"""The decorator of every public function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

P = ParamSpec("P")
R = TypeVar("R")


class _Hole:
    """Stands for an array in the static part of a call."""


def as_array(x: Any) -> Any:
    """Parameters and numpy arrays as jax arrays; anything else unchanged."""
    if isinstance(x, jax.Array):
        return x
    if isinstance(x, (np.ndarray, np.generic)) or hasattr(x, "__jax_array__"):
        return jnp.asarray(x)
    return tuple(x) if isinstance(x, list) else x


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(fn: Callable[..., R], form: tuple[tuple[type, Any], ...], names: tuple[str, ...], arrays: list[jax.Array]) -> R:
    feed = iter(arrays)
    values = [next(feed) if kind is _Hole else value for kind, value in form]
    args = len(values) - len(names)
    return fn(*values[:args], **dict(zip(names, values[args:], strict=True)))


def _dispatch(fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """One compiled call of ``fn`` with its non-array arguments static; a plain call where that cannot be."""
    values = (*args, *kwargs.values())
    arrays = [v for v in values if isinstance(v, jax.Array)]
    if not arrays or any(isinstance(v, Tracer) for v in arrays):
        return fn(*args, **kwargs)
    # The type is part of the key because 1, 1.0 and True are equal.
    form = tuple((_Hole, None) if isinstance(v, jax.Array) else (type(v), v) for v in values)
    try:
        hash(form)
    except TypeError:
        return fn(*args, **kwargs)
    return _compiled(fn, form, tuple(kwargs), arrays)


@overload
def function(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def function(*, jit: bool = True, values: Callable[..., None] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def function(fn: Any = None, /, *, jit: bool = True, values: Callable[..., None] | None = None) -> Any:
    """Make a function of arrays a public one.

    It then takes Parameters and numpy arrays, runs as one compiled call when it is called eagerly, and as plain code
    inside a trace. ``values(*args, **kwargs)`` is called first, to check what can be checked on known values only.
    ``jit=False`` is for functions that draw keys, take callables, or take arrays inside containers.
    """
    if fn is None:
        return functools.partial(function, jit=jit, values=values)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(as_array(a) for a in args)
        kwargs = {name: as_array(a) for name, a in kwargs.items()}
        if values is not None:
            values(*args, **kwargs)
        return _dispatch(fn, args, kwargs) if jit else fn(*args, **kwargs)

    return call
