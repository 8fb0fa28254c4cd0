"""Pooling to an output of a given size, whatever the size of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels import windows
from ..kernels.taps import numbers
from .pooling import mean, with_indices

Array = jax.Array
Target = int | None | tuple[int | None, ...]


def _target(who: object, ndim: int, output_size: Target) -> tuple[int | None, ...]:
    """The output size by axis; None, which 2d and 3d alone accept in a tuple, is the input's."""
    target = output_size if isinstance(output_size, tuple) else (output_size,) * ndim
    checks.require(len(target) == ndim, who, f"output_size must be an int or {ndim} ints", RuntimeError, output_size=output_size)
    for size in target:
        if size is None and isinstance(output_size, tuple) and ndim > 1:
            continue
        negative = checks.integer(who, "output_size", size) < 0
        checks.require(not negative, who, "output_size must be at least 0", RuntimeError, output_size=output_size)
    return target


def _bins(size: int, count: int) -> windows.Window | windows.Bins:
    even = size // count
    return windows.Window(even, even, 1, 0, count) if size == even * count else windows.Bins(size, count)


def _adaptive(who: object, ndim: int, x: Array, output_size: Target) -> tuple[tuple[int, ...], tuple[windows.Window | windows.Bins, ...]]:
    """The output's shape, and the bins by axis, none where the output is empty."""
    target = _target(who, ndim, output_size)
    checks.rank(who, x, (ndim + 1, ndim + 2))
    checks.require(jnp.issubdtype(x.dtype, np.floating), who, "input must be floating point", NotImplementedError, dtype=x.dtype)
    sizes = x.shape[-ndim:]
    checks.require(0 not in sizes, who, "input must be empty in the batch only", RuntimeError, shape=x.shape)
    counts = [n if count is None else count for n, count in zip(sizes, target)]
    return (*x.shape[:-ndim], *counts), tuple(map(_bins, sizes, counts)) if 0 not in counts else ()


def _adaptive_max_pool(who: str, ndim: int, x: Array, output_size: Target, indices: bool) -> Any:
    shape, bins = _adaptive(who, ndim, x, output_size)
    checks.require(0 not in shape[-ndim - 1 : -ndim], who, "input must be empty in the batch only", RuntimeError, shape=x.shape)
    if not bins:
        return (jnp.zeros(shape, x.dtype), jnp.zeros(shape, dtypes.index())) if indices else jnp.zeros(shape, x.dtype)
    values, places = windows.maximum(x, bins, indices)
    return (values, places) if indices else values


def _adaptive_avg_pool(who: str, ndim: int, x: Array, output_size: Target) -> Array:
    shape, bins = _adaptive(who, ndim, x, output_size)
    if not bins:
        return jnp.zeros(shape, x.dtype)
    return mean(x, bins, [numbers(b.size).full(b.count, b.size) if isinstance(b, windows.Window) else b.lengths() for b in bins])


@function
def adaptive_max_pool1d(input: Array, output_size: Target, return_indices: bool = False) -> Any:
    """The greatest value in each of ``output_size`` bins that cover the input evenly; with ``return_indices`` also where it was.

    Bin i of n over m places has those from ``floor(i m / n)`` to ``ceil((i + 1) m / n)``, so that bins may overlap.

    Shape: input (N, C, *sizes) or (C, *sizes), output (N, C, *output_size) or (C, *output_size).

    Args:
        input: floating point. NaN in a bin is its maximum; of equal values the first is taken, in the gradient too.
        output_size: one number, or one an axis; in 2d and 3d, None in a tuple keeps the input's size.
        return_indices: return ``(values, indices)``, flat indices into the plane, int64, or int32 while JAX's x64 mode is off.

    Raises:
        RuntimeError: an output size of another length or below 0, an input of another rank or empty other than in N.
        TypeError: an output size that is not an integer.
        NotImplementedError: input that is not floating point.
    """
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


adaptive_max_pool1d_with_indices = with_indices(adaptive_max_pool1d)


@function
def adaptive_max_pool2d(input: Array, output_size: Target, return_indices: bool = False) -> Any:
    """:func:`adaptive_max_pool1d` over images, (N, C, H, W) or (C, H, W)."""
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


adaptive_max_pool2d_with_indices = with_indices(adaptive_max_pool2d)


@function
def adaptive_max_pool3d(input: Array, output_size: Target, return_indices: bool = False) -> Any:
    """:func:`adaptive_max_pool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


adaptive_max_pool3d_with_indices = with_indices(adaptive_max_pool3d)


@function
def adaptive_avg_pool1d(input: Array, output_size: Target) -> Array:
    """The mean of each of ``output_size`` bins that cover the input evenly: the bins of :func:`adaptive_max_pool1d`.

    Shape: input (N, C, *sizes) or (C, *sizes), output (N, C, *output_size) or (C, *output_size).

    Args:
        input: floating point.
        output_size: one number, or one an axis; in 2d and 3d, None in a tuple keeps the input's size.

    Raises:
        RuntimeError: an output size of another length or below 0, an input of another rank or with an empty axis.
        TypeError: an output size that is not an integer.
        NotImplementedError: input that is not floating point.
    """
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


@function
def adaptive_avg_pool2d(input: Array, output_size: Target) -> Array:
    """:func:`adaptive_avg_pool1d` over images, (N, C, H, W) or (C, H, W)."""
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


@function
def adaptive_avg_pool3d(input: Array, output_size: Target) -> Array:
    """:func:`adaptive_avg_pool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


@layer
class _AdaptiveMaxPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Any]]

    output_size: Target
    return_indices: bool = False

    def validate(self) -> None:
        _target(self, self.ndim, self.output_size)

    def compute(self, s: Any, input: Array) -> Any:
        return self.pool(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


@layer
class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The greatest value in each of ``output_size`` bins that cover the input evenly; with ``return_indices`` also where it was.

    Shape and arguments as :func:`adaptive_max_pool1d`'s: (N, C, L) or (C, L).
    """

    ndim = 1
    pool = staticmethod(adaptive_max_pool1d)


@layer
class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """:class:`AdaptiveMaxPool1d` over images, (N, C, H, W) or (C, H, W)."""

    ndim = 2
    pool = staticmethod(adaptive_max_pool2d)


@layer
class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """:class:`AdaptiveMaxPool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    pool = staticmethod(adaptive_max_pool3d)


@layer
class _AdaptiveAvgPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Array]]

    output_size: Target

    def validate(self) -> None:
        _target(self, self.ndim, self.output_size)

    def compute(self, s: Any, input: Array) -> Array:
        return self.pool(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


@layer
class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The mean of each of ``output_size`` bins that cover the input evenly.

    Shape and arguments as :func:`adaptive_avg_pool1d`'s: (N, C, L) or (C, L).
    """

    ndim = 1
    pool = staticmethod(adaptive_avg_pool1d)


@layer
class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """:class:`AdaptiveAvgPool1d` over images, (N, C, H, W) or (C, H, W)."""

    ndim = 2
    pool = staticmethod(adaptive_avg_pool2d)


@layer
class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """:class:`AdaptiveAvgPool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    pool = staticmethod(adaptive_avg_pool3d)
