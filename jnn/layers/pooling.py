"""Pooling over regular windows: maxima, means and p-norms."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels import windows
from ..kernels.taps import numbers

Array = jax.Array
Size = int | tuple[int, ...]
P = ParamSpec("P")


class _Geometry(NamedTuple):
    """What a pooling layer knows of its windows before it sees an input, each by axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def _geometry(who: object, ndim: int, kernel_size: Size, stride: Size | None, padding: Size = 0, dilation: Size = 1) -> _Geometry:
    given = {"kernel_size": kernel_size, "stride": kernel_size if stride is None or stride == () else stride}
    given |= {"padding": padding, "dilation": dilation}
    by_name = {name: checks.ntuple(who, name, value, ndim) for name, value in given.items()}
    for name, values in by_name.items():
        least = 0 if name == "padding" else 1
        checks.require(min(values) >= least, who, f"{name} must be at least {least}", RuntimeError, **{name: given[name]})
    return _Geometry(*by_name.values())


def nonempty(who: object, x: Array, ndim: int) -> None:
    """Refuse an input that is not (N, C, *sizes) or (C, *sizes) with ``ndim`` sizes, or has an empty dimension other than N."""
    checks.rank(who, x, (ndim + 1, ndim + 2))
    checks.require(0 not in x.shape[-ndim - 1 :], who, "input must be empty in the batch only", RuntimeError, shape=x.shape)


def _windows(who: object, x: Array, g: _Geometry, ceil_mode: bool) -> tuple[windows.Window, ...]:
    nonempty(who, x, len(g.size))
    fits = all(p <= ((k - 1) * d + 1) // 2 for k, _, p, d in zip(*g))
    checks.require(fits, who, "padding must be at most half of the window", RuntimeError, **g._asdict())
    axes = []
    for n, k, s, p, d in zip(x.shape[-len(g.size) :], *g):
        room = n + 2 * p - (k - 1) * d - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # it would start in the right padding
        axes.append(windows.Window(k, s, d, p, count))
    if any(w.count < 1 for w in axes):
        checks.fail(who, "the input is smaller than the window", RuntimeError, shape=x.shape, kernel_size=g.size, dilation=g.dilation)
    return tuple(axes)


def _orderable(who: object, x: Array) -> None:
    """Refuse dtypes of which torch takes no maxima."""
    real = jnp.issubdtype(x.dtype, np.floating) or jnp.issubdtype(x.dtype, np.integer)
    checks.require(real, who, "input must be real numbers", NotImplementedError, dtype=x.dtype)


def _max_pool(
    who: str,
    ndim: int,
    x: Array,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    _orderable(who, x)
    g = _geometry(who, ndim, kernel_size, stride, padding, dilation)
    values, places = windows.maximum(x, _windows(who, x, g, ceil_mode), return_indices)
    return (values, places) if return_indices else values


def mean(x: Array, axes: tuple[windows.Window | windows.Bins, ...], counts: Sequence[np.ndarray]) -> Array:
    """Sums over windows divided by the outer product of ``counts``, one array an axis or a last one for all of them."""
    y = windows.total(x.astype(dtypes.accumulator(x.dtype)) if jnp.issubdtype(x.dtype, np.floating) else x, axes)
    if all(isinstance(c, np.ndarray) and (c == c[0]).all() for c in counts):
        divisor = jnp.asarray(math.prod(int(c[0]) for c in counts), y.dtype)
    else:
        shapes = [(1,) * axis + (-1,) + (1,) * (len(counts) - axis - 1) for axis in range(len(counts))]
        divisor = functools.reduce(jnp.multiply, (jnp.asarray(c.reshape(s), y.dtype) for c, s in zip(counts, shapes)))
        divisor = lax.expand_dims(divisor, range(y.ndim - len(counts)))
    return lax.div(y, jnp.broadcast_to(divisor, y.shape)).astype(x.dtype)


def with_indices(pool: Callable[P, Any]) -> Callable[P, tuple[Array, Array]]:
    """``pool`` that returns indices whatever its argument ``return_indices`` says."""
    signature = inspect.signature(pool)

    @functools.wraps(pool)
    def call(*args: P.args, **kwargs: P.kwargs) -> tuple[Array, Array]:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["return_indices"] = True
        return pool(*bound.args, **bound.kwargs)

    call.__doc__ = f":func:`{pool.__name__}` that always returns the indices."
    call.__name__ = call.__qualname__ = f"{pool.__name__}_with_indices"
    return call


@function
def max_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The greatest value in each window; with ``return_indices`` also where it was, as a flat index into the plane.

    Shape: input (N, C, *sizes) or (C, *sizes), output the same with size
        ``floor((size + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1``.

    Args:
        input: real numbers. NaN in a window is its maximum; of equal values the first is taken, in the gradient too.
        kernel_size: places in a window, one number or one an axis.
        stride: distance between windows; ``kernel_size`` when None.
        padding: places of -inf added on both sides, at most half of the window.
        dilation: distance between the places of a window.
        ceil_mode: round the output size up; a window never starts in the right padding.
        return_indices: return ``(values, indices)``, indices int64, or int32 while JAX's x64 mode is off.

    Raises:
        RuntimeError: a size that is out of its range, an input of another rank, empty, or smaller than the window.
        NotImplementedError: boolean or complex input.
    """
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


max_pool1d_with_indices = with_indices(max_pool1d)


@function
def max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """:func:`max_pool1d` over images, (N, C, H, W) or (C, H, W)."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


max_pool2d_with_indices = with_indices(max_pool2d)


@function
def max_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """:func:`max_pool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


max_pool3d_with_indices = with_indices(max_pool3d)


def _summable(who: object, x: Array) -> None:
    """Refuse dtypes of which torch takes no means over windows: it knows floating point and int64."""
    real = jnp.issubdtype(x.dtype, np.floating) or x.dtype == dtypes.index()
    checks.require(real, who, f"input must be floating point or {dtypes.index()}", NotImplementedError, dtype=x.dtype)


def _avg_pool(
    who: str,
    ndim: int,
    x: Array,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    _summable(who, x)
    axes = _windows(who, x, _geometry(who, ndim, kernel_size, stride, padding), ceil_mode)
    if divisor_override is not None:
        checks.require(divisor_override != 0, who, "divisor_override must not be zero", RuntimeError)
        return mean(x, axes, [np.array([divisor_override])])
    counts = []
    for n, w in zip(x.shape[-ndim:], axes):
        xp = numbers(n, w.count)
        start = xp.arange(w.count) * w.stride - w.before
        end = xp.minimum(start + w.size, n + w.before)
        counts.append(end - start if count_include_pad else xp.minimum(end, n) - xp.maximum(start, 0))
    return mean(x, axes, counts)


@function
def avg_pool1d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window.

    Shape: input (N, C, *sizes) or (C, *sizes), output the same with size
        ``floor((size + 2 padding - kernel_size) / stride) + 1``.

    Args:
        input: floating point, or int64, whose means are rounded towards zero.
        kernel_size: places in a window, one number or one an axis.
        stride: distance between windows; ``kernel_size`` when None.
        padding: zeros added on both sides, at most half of the window.
        ceil_mode: round the output size up; a window never starts in the right padding.
        count_include_pad: whether the padding counts among the places that are averaged.

    Raises:
        RuntimeError: a size that is out of its range, an input of another rank, empty, or smaller than the window.
        NotImplementedError: another dtype.
    """
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


@function
def avg_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """:func:`avg_pool1d` over images, (N, C, H, W) or (C, H, W). ``divisor_override`` divides the sums instead of the counts."""
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@function
def avg_pool3d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """:func:`avg_pool1d` over volumes, (N, C, D, H, W) or (C, D, H, W). ``divisor_override`` as in :func:`avg_pool2d`."""
    return _avg_pool("avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _lp_pool(who: str, ndim: int, x: Array, norm_type: float, kernel_size: Size, stride: Size | None, ceil_mode: bool) -> Array:
    if math.isinf(norm_type):
        sign = 1 if norm_type > 0 else -1
        magnitude = x * jnp.sign(x)  # jnp.abs has the derivative 1 at zero, torch's has 0
        return sign * _max_pool(who, ndim, sign * magnitude, kernel_size, stride, 0, 1, ceil_mode, False)
    checks.require(norm_type != 0, who, "norm_type must not be zero", ZeroDivisionError)
    x = x if jnp.issubdtype(x.dtype, np.inexact) else x.astype(np.float32)
    wide = x.astype(dtypes.accumulator(x.dtype))
    powers = wide ** (int(norm_type) if float(norm_type).is_integer() else norm_type)
    sums = _avg_pool(who, ndim, powers, kernel_size, stride, 0, ceil_mode) * math.prod(checks.ntuple(who, "kernel_size", kernel_size, ndim))
    # The root has no derivative at zero; torch gives 0 there.
    zero = sums == 0
    root = jnp.where(zero, 1, sums) ** (1 / norm_type)
    return jnp.where(zero, 0 if norm_type > 0 else np.inf, root).astype(x.dtype)


@function
def lp_pool1d(input: Array, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False) -> Array:
    """The p-norm of each window without taking magnitudes: ``y = (sum x^p)^(1/p)``.

    Shape: input (N, C, *sizes) or (C, *sizes), output the same with size ``floor((size - kernel_size) / stride) + 1``.

    Args:
        input: floating point; integers are made float32.
        norm_type: p. ``inf`` and ``-inf`` take the greatest and least magnitude. The gradient where the sum is 0 is 0.
        kernel_size: places in a window, one number or one an axis.
        stride: distance between windows; ``kernel_size`` when None.
        ceil_mode: round the output size up. A window cut short at the edge counts as the mean of its places times kernel_size.

    Raises:
        RuntimeError: as :func:`avg_pool1d`.
        ZeroDivisionError: norm_type is 0.
    """
    return _lp_pool("lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode)


@function
def lp_pool2d(input: Array, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False) -> Array:
    """:func:`lp_pool1d` over images, (N, C, H, W) or (C, H, W)."""
    return _lp_pool("lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode)


@function
def lp_pool3d(input: Array, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False) -> Array:
    """:func:`lp_pool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _lp_pool("lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode)


@layer
class _MaxPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Any]]

    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0
    dilation: Size = 1
    return_indices: bool = False
    ceil_mode: bool = False

    def validate(self) -> None:
        self._set(stride=self.kernel_size if self.stride is None else self.stride)
        _geometry(self, self.ndim, self.kernel_size, self.stride, self.padding, self.dilation)

    def compute(self, s: Any, input: Array) -> Any:
        return self.pool(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


@layer
class MaxPool1d(_MaxPool):
    """The greatest value in each window; with ``return_indices`` also where it was.

    Shape and arguments as :func:`max_pool1d`'s: (N, C, L) or (C, L). The order of ``return_indices`` and ``ceil_mode``
    is torch's, and not the function's.
    """

    ndim = 1
    pool = staticmethod(max_pool1d)


@layer
class MaxPool2d(_MaxPool):
    """:class:`MaxPool1d` over images, (N, C, H, W) or (C, H, W)."""

    ndim = 2
    pool = staticmethod(max_pool2d)


@layer
class MaxPool3d(_MaxPool):
    """:class:`MaxPool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    pool = staticmethod(max_pool3d)


@layer
class _AvgPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Array]]

    kernel_size: Size
    stride: Size | None = None
    padding: Size = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def validate(self) -> None:
        self._set(stride=self.kernel_size if self.stride is None else self.stride)
        _geometry(self, self.ndim, self.kernel_size, self.stride, self.padding)

    def compute(self, s: Any, input: Array) -> Array:
        return self.pool(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


@layer
class AvgPool1d(_AvgPool):
    """The mean of each window.

    Shape and arguments as :func:`avg_pool1d`'s: (N, C, L) or (C, L).
    """

    ndim = 1
    pool = staticmethod(avg_pool1d)

    def validate(self) -> None:
        super().validate()
        self._set(**{name: checks.ntuple(self, name, getattr(self, name), 1) for name in ("kernel_size", "stride", "padding")})


@layer
class _DivisorAvgPool(_AvgPool):
    divisor_override: int | None = None

    def validate(self) -> None:
        super().validate()
        checks.require(self.divisor_override != 0, self, "divisor_override must not be zero", RuntimeError)

    def compute(self, s: Any, input: Array) -> Array:
        config = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return self.pool(input, *config)


@layer
class AvgPool2d(_DivisorAvgPool):
    """:class:`AvgPool1d` over images, (N, C, H, W) or (C, H, W). ``divisor_override`` as in :func:`avg_pool2d`."""

    ndim = 2
    pool = staticmethod(avg_pool2d)


@layer
class AvgPool3d(_DivisorAvgPool):
    """:class:`AvgPool1d` over volumes, (N, C, D, H, W) or (C, D, H, W). ``divisor_override`` as in :func:`avg_pool2d`."""

    ndim = 3
    pool = staticmethod(avg_pool3d)


@layer
class _LPPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Array]]

    norm_type: float
    kernel_size: Size
    stride: Size | None = None
    ceil_mode: bool = False

    def validate(self) -> None:
        checks.require(self.norm_type != 0, self, "norm_type must not be zero", ZeroDivisionError)
        _geometry(self, self.ndim, self.kernel_size, self.stride)

    def compute(self, s: Any, input: Array) -> Array:
        return self.pool(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in ("norm_type", "kernel_size", "stride", "ceil_mode"))


@layer
class LPPool1d(_LPPool):
    """The p-norm of each window without taking magnitudes: ``y = (sum x^p)^(1/p)``.

    Shape and arguments as :func:`lp_pool1d`'s: (N, C, L) or (C, L).
    """

    ndim = 1
    pool = staticmethod(lp_pool1d)


@layer
class LPPool2d(_LPPool):
    """:class:`LPPool1d` over images, (N, C, H, W) or (C, H, W)."""

    ndim = 2
    pool = staticmethod(lp_pool2d)


@layer
class LPPool3d(_LPPool):
    """:class:`LPPool1d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    pool = staticmethod(lp_pool3d)
