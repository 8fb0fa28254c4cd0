"""The partial inverse of max pooling."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from .pooling import Size, nonempty

Array = jax.Array


def _unpooled_sizes(
    who: object, ndim: int, input: Array, kernel_size: Size, stride: Size | None, padding: Size, output_size: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The sizes of the output, from those that the layer's arguments give or near them."""
    kernel = checks.ntuple(who, "kernel_size", kernel_size, ndim)
    strides = kernel if stride is None else checks.ntuple(who, "stride", stride, ndim)
    checks.require(min(strides) > 0, who, "stride must be at least 1", RuntimeError, stride=strides)
    nonempty(who, input, ndim)
    pads = checks.ntuple(who, "padding", padding, ndim)
    natural = [(n - 1) * s + k - 2 * p for n, k, s, p in zip(input.shape[-ndim:], kernel, strides, pads)]
    sizes = natural
    if output_size is not None:
        checks.require(isinstance(output_size, tuple), who, "output_size must be a sequence", TypeError, output_size=output_size)
        sizes = output_size[2:] if len(output_size) == ndim + 2 else output_size
        checks.require(len(sizes) == ndim, who, f"output_size must have {ndim} or {ndim + 2} numbers", output_size=output_size)
        near = all(abs(size - n) < s for size, n, s in zip(sizes, natural, strides))
        checks.require(near, who, f"output_size must be within less than the stride of {natural}", output_size=output_size, stride=strides)
    checks.require(min(sizes) >= 0, who, "output sizes must be at least 0", output_size=sizes)
    return tuple(sizes)


def _max_unpool(
    ndim: int, x: Array, indices: Array, kernel_size: Size, stride: Size | None, padding: Size, output_size: tuple[int, ...] | None
) -> Array:
    who = f"max_unpool{ndim}d"
    checks.require(indices.dtype == dtypes.index(), who, f"indices must be {dtypes.index()}", RuntimeError, dtype=indices.dtype)
    same = x.shape == indices.shape
    checks.require(
        same, who, "input and indices must have one shape", RuntimeError, **{"input.shape": x.shape, "indices.shape": indices.shape}
    )
    checks.require(jnp.issubdtype(x.dtype, np.floating), who, "input must be floating point", NotImplementedError, dtype=x.dtype)
    sizes = _unpooled_sizes(who, ndim, x, kernel_size, stride, padding, output_size)
    lead = x.shape[:-ndim]
    rows = (math.prod(lead), math.prod(x.shape[-ndim:]))
    return _put(x.reshape(rows), indices.reshape(rows), math.prod(sizes)).reshape(*lead, *sizes)


@functools.partial(jax.jit, static_argnames="area")
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def _put(values: Array, places: Array, area: int) -> Array:
    # Places that occur twice, as in pooling by overlapping windows, hold one value: whichever is written is right, and
    # all of them get its gradient.
    y = jnp.zeros(area, values.dtype).at[places].set(values, mode="drop", unique_indices=True)
    return jnp.where(jnp.any((places < 0) | (places >= area)), jnp.asarray(np.nan, y.dtype), y)


def _check_indices(
    ndim: int, input: Array, indices: Array, kernel_size: Size, stride: Size | None = None, padding: Size = 0, output_size: Any = None
) -> None:
    who = f"max_unpool{ndim}d"
    sizes = _unpooled_sizes(who, ndim, input, kernel_size, stride, padding, output_size)
    checks.index_range(who, "indices", indices, math.prod(sizes), exc=RuntimeError)


@function(values=functools.partial(_check_indices, 1))
def max_unpool1d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: tuple[int, ...] | None = None,
) -> Array:
    """Each value put back at its index in a plane of zeros: the partial inverse of max pooling.

    Shape: input and indices (N, C, *sizes) or (C, *sizes), output the same with size
        ``(size - 1) stride - 2 padding + kernel_size``, or as ``output_size`` says.

    Args:
        input: floating point values.
        indices: the flat indices of max pooling, int64, or int32 while JAX's x64 mode is off. Where values share an index
            one of them is written.
        kernel_size: places in a window of the pooling, one number or one an axis.
        stride: its stride; ``kernel_size`` when None.
        padding: its padding.
        output_size: the sizes, or the whole shape of a batch, where several fit; less than a stride from the formula's.

    Raises:
        RuntimeError: shapes that differ, an input of another rank or empty other than in N, an index outside of the plane.
            A traced index outside of the plane makes the plane NaN.
        ValueError: an output size that the pooling cannot have come from.
        NotImplementedError: input that is not floating point.
    """
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


@function(values=functools.partial(_check_indices, 2))
def max_unpool2d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: tuple[int, ...] | None = None,
) -> Array:
    """:func:`max_unpool1d` over images, (N, C, H, W) or (C, H, W)."""
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


@function(values=functools.partial(_check_indices, 3))
def max_unpool3d(
    input: Array,
    indices: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: tuple[int, ...] | None = None,
) -> Array:
    """:func:`max_unpool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)


@layer
class _MaxUnpool(Layer):
    ndim: ClassVar[int]
    unpool: ClassVar[Callable[..., Array]]

    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0

    def validate(self) -> None:
        self._set(stride=self.kernel_size if self.stride is None else self.stride)
        self._set(**{name: checks.ntuple(self, name, getattr(self, name), self.ndim) for name in ("kernel_size", "stride", "padding")})

    def compute(self, s: Any, input: Array, indices: Array, output_size: tuple[int, ...] | None = None) -> Array:
        return self.unpool(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


@layer
class MaxUnpool1d(_MaxUnpool):
    """Each value put back at its index in a plane of zeros: the partial inverse of :class:`MaxPool1d`.

    Shape and arguments as :func:`max_unpool1d`'s: (N, C, L) or (C, L).
    """

    ndim = 1
    unpool = staticmethod(max_unpool1d)


@layer
class MaxUnpool2d(_MaxUnpool):
    """:class:`MaxUnpool1d` over images, (N, C, H, W) or (C, H, W)."""

    ndim = 2
    unpool = staticmethod(max_unpool2d)


@layer
class MaxUnpool3d(_MaxUnpool):
    """:class:`MaxUnpool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    unpool = staticmethod(max_unpool3d)
