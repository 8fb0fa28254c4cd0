"""Argument checks. Every refusal of the library is worded here, in one format.

``Conv2d: groups must divide in_channels, got groups=3, in_channels=8``
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.core import Tracer


def label(who: object) -> str:
    """The name of a function, a class, or the class of an object."""
    if isinstance(who, str):
        return who
    return who.__name__ if isinstance(who, type) else type(who).__name__


def _show(value: object) -> str:
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.dtype):
        return value.name
    return getattr(value, "__name__", None) or repr(value)


def fail(who: object, rule: str, exc: type[Exception] = ValueError, **got: object) -> NoReturn:
    """Raise ``exc`` saying who refuses, which rule was broken and the values that broke it."""
    values = ", ".join(f"{name}={_show(value)}" for name, value in got.items())
    raise exc(f"{label(who)}: {rule}" + (f", got {values}" if values else ""))


def require(ok: object, who: object, rule: str, exc: type[Exception] = ValueError, **got: object) -> None:
    """``fail`` unless ``ok``."""
    if not ok:
        fail(who, rule, exc, **got)


def integer(who: object, name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int, refused when it is not integral or is below ``least``."""
    got: dict[str, Any] = {name: value}
    try:
        number = operator.index(value)
    except TypeError:
        fail(who, f"{name} must be an integer", TypeError, **got)
    require(least is None or number >= least, who, f"{name} must be at least {least}", **got)
    return number


def ntuple(who: object, name: str, value: int | Sequence[int], n: int, least: int | None = None) -> tuple[int, ...]:
    """``value`` as a tuple of ``n`` ints: an int or a sequence of one is repeated, a sequence of ``n`` is kept."""
    items = tuple(value) if isinstance(value, Iterable) else (value,)
    if len(items) == 1:
        items *= n
    require(len(items) == n, who, f"{name} must be an int or {n} ints", RuntimeError, **{name: value})
    return tuple(integer(who, name, item, least) for item in items)


def choice(who: object, name: str, value: Any, allowed: Collection[object]) -> None:
    """Refuse a ``value`` that is not one of ``allowed``."""
    listed = ", ".join(repr(a) for a in allowed)
    require(value in allowed, who, f"{name} must be one of {listed}", **{name: value})


def rank(who: object, x: Any, allowed: Collection[int], exc: type[Exception] = RuntimeError, name: str = "input") -> None:
    """Refuse an array whose number of dimensions is not one of ``allowed``."""
    listed = " or ".join(f"{a}D" for a in allowed)
    require(x.ndim in allowed, who, f"{name} must be {listed}", exc, **{f"{name}.shape": tuple(x.shape)})


def same_dtype(who: object, **arrays: Any) -> None:
    """Refuse arrays (or ``None``) of different dtypes: torch does not promote between data and weights."""
    dtypes = {name: x.dtype for name, x in arrays.items() if x is not None}
    require(len(set(dtypes.values())) <= 1, who, f"{', '.join(dtypes)} must have one dtype", RuntimeError, **dtypes)


def floating(who: object, name: str, x: Any) -> None:
    """Refuse an array that is neither floating point nor complex."""
    require(jax.numpy.issubdtype(x.dtype, np.inexact), who, f"{name} must be floating point", RuntimeError, dtype=x.dtype)


def dim(who: object, value: int, ndim: int, name: str = "dim") -> int:
    """``value`` as a non-negative axis of an array of ``ndim`` dimensions (a scalar counts as one)."""
    value, n = integer(who, name, value), max(ndim, 1)
    require(-n <= value < n, who, f"{name} must be in [{-n}, {n - 1}]", IndexError, **{name: value})
    return value % n


def concrete(x: Any) -> np.ndarray | None:
    """The values of ``x`` when they are known and on the CPU, else ``None``: reading them must never wait for a device."""
    if isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not (x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())):
        return None
    return np.asarray(x)


def index_range(who: object, name: str, index: Any, size: int, *, also: int | None = None, exc: type[Exception] = IndexError) -> None:
    """Refuse known indices outside ``[0, size)``, other than the value ``also``. Traced indices pass: they are data."""
    values = concrete(index)
    if values is None or not values.size:
        return
    bad = (values < 0) | (values >= size)
    if also is not None:
        bad &= values != also
    if bad.any():
        fail(who, f"{name} must be in [0, {size - 1}]", exc, **{name: values[bad].flat[0].item()})


def broadcast(who: object, **arrays: jax.Array) -> list[jax.Array]:
    """The arrays broadcast to one shape.

    Raises:
        RuntimeError: there is no such shape.
    """
    try:
        shape = jax.numpy.broadcast_shapes(*(x.shape for x in arrays.values()))
    except ValueError:
        fail(who, f"{', '.join(arrays)} must broadcast to one shape", RuntimeError, **arrays)
    return [jax.numpy.broadcast_to(x, shape) for x in arrays.values()]


def expand(who: object, name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``x`` broadcast to ``shape``.

    Raises:
        RuntimeError: it does not broadcast to it.
    """
    fits = x.ndim <= len(shape) and all(m in (1, n) for m, n in zip(x.shape[::-1], shape[::-1], strict=False))
    require(fits, who, f"{name} must broadcast to {shape}", RuntimeError, **{name: x})
    return jax.numpy.broadcast_to(x, shape)
