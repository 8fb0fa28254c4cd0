"""Resampling of signals, images and volumes to another size.

Every mode is separable, and linear: along one axis, each output is a weighted sum of a few inputs. Indices and weights follow
from the sizes alone, and are computed here in numpy.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels.resampling import Taps, cubic, resample_space

Array = jax.Array
# For each output along an axis, the inputs that it is a sum of and their weights: (outputs, taps) both.
Sums = tuple[np.ndarray, np.ndarray]
Scale = float | None

_RANKS = {"linear": (3,), "bilinear": (4,), "bicubic": (4,), "lanczos": (4,), "trilinear": (5,)}
_ANY_RANK = ("nearest", "nearest-exact", "area")


def _step(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Any:
    """The distance between outputs, in inputs."""
    if align_corners:
        return dtype.type(n - 1) / dtype.type(out - 1) if out > 1 else dtype.type(0)
    return dtype.type(1 / scale) if scale is not None and scale > 0 else dtype.type(n) / dtype.type(out)


def _positions(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> np.ndarray:
    """Where the outputs stand among the inputs, the first of which stands at 0."""
    half = dtype.type(0 if align_corners else 0.5)
    return _step(n, out, scale, align_corners, dtype) * (np.arange(out, dtype=dtype) + half) - half


def _nearest(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    # torch doubles exactly whatever the scale, and rounds positions to float32 before taking the floor.
    step = dtype.type(0.5) if out == 2 * n else dtype.type(1) if out == n else _step(n, out, scale, False, dtype)
    index = np.floor((np.arange(out, dtype=dtype) * step).astype(np.float32))
    return _one_tap(index, n, dtype)


def _nearest_exact(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    position = np.maximum(_positions(n, out, scale, False, dtype), 0)
    return _one_tap(np.floor((position + dtype.type(0.5)).astype(np.float32)), n, dtype)


def _one_tap(index: np.ndarray, n: int, dtype: Any) -> Sums:
    return np.minimum(index.astype(int), n - 1)[:, None], np.ones((len(index), 1), dtype)


def _linear(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    if n == out:
        return _one_tap(np.arange(n), n, dtype)
    position = np.maximum(_positions(n, out, scale, align_corners, dtype), 0)
    left = np.minimum(np.floor(position), n - 1).astype(int)
    far = np.clip(position - left, 0, 1)
    return np.stack([left, np.minimum(left + 1, n - 1)], -1), np.stack([1 - far, far], -1)


def _bicubic(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    position = _positions(n, out, scale, align_corners, dtype)
    left = np.floor(position)
    index = left[:, None].astype(int) + np.arange(-1, 3)
    return np.clip(index, 0, n - 1), np.stack(cubic(position - left), -1).astype(dtype)


def _area(n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    start = np.arange(out) * n // out
    count = -(-(np.arange(out) + 1) * n // out) - start
    return _windows(start, count, n, lambda j: np.ones(j.shape, dtype))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _smooth_cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2, which Pillow and torch's antialiasing have."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_smooth_cubic, 2),
    "lanczos": (_lanczos, 3),
}


def _antialiased(mode: str, n: int, out: int, scale: Scale, align_corners: bool, dtype: Any) -> Sums:
    """A filter as wide as the outputs are apart, so that shrinking averages."""
    if n == out:
        return _one_tap(np.arange(n), n, dtype)
    kernel, radius = _FILTERS[mode]
    step = _step(n, out, scale, align_corners, dtype)
    width = max(step, dtype.type(1))
    # Aligned corners change the step only, in torch: the first output still stands half a step from the border.
    center = step * (np.arange(out, dtype=dtype) + dtype.type(0.5))
    start = np.maximum((center - radius * width + dtype.type(0.5)).astype(int), 0)
    stop = np.minimum((center + radius * width + dtype.type(0.5)).astype(int), n)
    return _windows(start, stop - start, n, lambda j: kernel((j - center[:, None] + dtype.type(0.5)) / width))


def _windows(start: np.ndarray, count: np.ndarray, n: int, weigh: Callable[[np.ndarray], np.ndarray]) -> Sums:
    """Weighted means over windows of unequal length; those that are shorter get taps of weight 0."""
    taps = np.arange(count.max(initial=1))
    index = start[:, None] + taps
    weights = np.where(taps < count[:, None], weigh(index), 0)
    return np.minimum(index, n - 1), weights / weights.sum(-1, keepdims=True)


_MODES: dict[str, Callable[..., Sums]] = {
    "nearest": _nearest,
    "nearest-exact": _nearest_exact,
    "linear": _linear,
    "bilinear": _linear,
    "trilinear": _linear,
    "bicubic": _bicubic,
    "area": _area,
}


@functools.lru_cache(1024)
def _taps(mode: str, antialias: bool, n: int, *args: Any) -> Taps:
    """Equal for equal arguments, so that what is compiled for them is found again."""
    return Taps(n, *(_antialiased(mode, n, *args) if antialias else _MODES[mode](n, *args)))


def _sizes(
    who: str, space: tuple[int, ...], size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None, recompute: bool
) -> tuple[tuple[int, ...], tuple[Scale, ...]]:
    """The output's size, and the scales to compute positions with: those given, or None for those of the sizes."""
    checks.require(size is None or scale_factor is None, who, "give size or scale_factor, not both", size=size, scale_factor=scale_factor)
    given = scale_factor if size is None else size
    checks.require(given is not None, who, "give size or scale_factor")
    checks.require(size is None or not recompute, who, "recompute_scale_factor goes with scale_factor only", size=size)
    values: Any = tuple(given) if isinstance(given, Sequence) else (given,) * len(space)
    name = "scale_factor" if size is None else "size"
    checks.require(len(values) == len(space), who, f"{name} must have one value per spatial dimension", **{name: values, "space": space})
    scales: tuple[Scale, ...] = (None,) * len(space)
    if size is None:
        values, scales = tuple(int(n * f) for n, f in zip(space, values)), scales if recompute else values
    out = tuple(checks.integer(who, "size", v) for v in values)
    return out, scales


@function
def interpolate(
    input: Array,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Array:
    """Resamples the spatial dimensions to ``size``, or to ``floor(scale_factor * size)``.

    Without ``align_corners`` the borders of the first and last element stay where they are, with it their centres do. Elements
    beyond the border are the nearest ones inside.

    Shape: input (N, C, *), output (N, C, *size), with one to three spatial dimensions.

    Args:
        size: the output's size, for all spatial dimensions or each.
        scale_factor: output over input size, for all or each; one of the two must be given.
        mode: "nearest", "nearest-exact" (whose rounding is Pillow's) and "area" (means over windows) for any rank; "linear" for
            three dimensions of the input, "bilinear", "bicubic" and "lanczos" for four, "trilinear" for five.
        align_corners: for the modes that interpolate; None is False.
        recompute_scale_factor: compute positions from the two sizes and not from scale_factor, which may differ by rounding.
        antialias: average over what lies between the outputs when shrinking; "bilinear", "bicubic" and "lanczos" only.

    Raises:
        ValueError: the arguments contradict each other or the input's rank.
        NotImplementedError: the mode is unknown, or not for this rank.
        RuntimeError: input or output would be empty, or the input's dtype is not for this mode.
    """
    who, inexact = "interpolate", jnp.issubdtype(input.dtype, np.floating)
    _check_mode(who, input, mode, align_corners, antialias)
    space = input.shape[2:]
    out, scales = _sizes(who, space, size, scale_factor, bool(recompute_scale_factor) or (mode == "area" and size is None))
    ok = min(space) > 0 and min(out) >= (0 if mode == "area" else 1)
    checks.require(ok, who, "input and output must not be empty", RuntimeError, input=space, output=out)
    plain = mode in ("nearest", "nearest-exact")
    ok = plain or inexact or (input.dtype == np.uint8 and mode != "area")
    checks.require(ok, who, f"the input must be floating point for mode {mode!r}", RuntimeError, dtype=input.dtype)
    dtype = dtypes.accumulator(input.dtype) if inexact else np.dtype(np.float32)
    x = input if plain else input.astype(dtype)
    x = resample_space(x, [_taps(mode, antialias, *sizes, bool(align_corners), dtype) for sizes in zip(space, out, scales, strict=True)])
    if not plain and input.dtype == np.uint8:
        x = jnp.clip(jnp.round(x), 0, 255)
    return x.astype(input.dtype)


def _check_mode(who: str, input: Array, mode: str, align_corners: bool | None, antialias: bool) -> None:
    if mode in _ANY_RANK:
        checks.require(align_corners is None, who, f"align_corners must be None for mode {mode!r}", align_corners=align_corners)
    smooth = not antialias or (mode in _FILTERS and input.ndim == 4)
    checks.require(smooth, who, f"antialias needs four dimensions and a mode of {', '.join(_FILTERS)}", mode=mode, input=input)
    checks.require(mode != "lanczos" or antialias, who, "mode 'lanczos' needs antialias=True")
    checks.require(mode != "lanczos" or not align_corners, who, "mode 'lanczos' needs align_corners=False")
    ranks = (3, 4, 5) if mode in _ANY_RANK else _RANKS.get(mode, ())
    checks.require(ranks, who, f"mode must be one of {', '.join((*_ANY_RANK, *_RANKS))}", NotImplementedError, mode=mode)
    checks.rank(who, input, ranks, NotImplementedError)


def _deprecated(name: str) -> None:
    warnings.warn(f"{name}: deprecated, use interpolate", UserWarning, stacklevel=4)


@function
def upsample(
    input: Array,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Array:
    """Deprecated: :func:`interpolate`."""
    _deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


@function
def upsample_nearest(input: Array, size: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None) -> Array:
    """Deprecated: :func:`interpolate` with mode "nearest"."""
    _deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor)


@function
def upsample_bilinear(input: Array, size: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None) -> Array:
    """Deprecated: :func:`interpolate` with mode "bilinear" and aligned corners."""
    _deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, "bilinear", True)


@layer
class _Upsample(Layer):
    size: int | Sequence[int] | None = None
    scale_factor: float | Sequence[float] | None = None

    def validate(self) -> None:
        factor = self.scale_factor
        many = isinstance(factor, Sequence)
        self._set(scale_factor=tuple(float(f) for f in factor) if many else float(factor) if factor else None)

    def compute(self, s: Any, input: Array) -> Array:
        me: Any = self  # the modes are fields of Upsample, and fixed in the others
        return interpolate(input, self.size, self.scale_factor, me.mode, me.align_corners, me.recompute_scale_factor)

    def extra_repr(self) -> str:
        size = f"size={self.size}" if self.scale_factor is None else f"scale_factor={self.scale_factor}"
        return f"{size}, mode={self.mode!r}"  # type: ignore[attr-defined]


@layer
class Upsample(_Upsample):
    """Resamples the spatial dimensions to another size; see :func:`interpolate`.

    Shape: input (N, C, *), output (N, C, *size), with one to three spatial dimensions.

    Args:
        size: the output's size, for all spatial dimensions or each.
        scale_factor: output over input size, for all or each; one of the two must be given.
        mode: "nearest", "nearest-exact", "area", "linear", "bilinear", "bicubic" or "trilinear".
        align_corners: keep the centres of the corner elements in place, and not the outer borders.
        recompute_scale_factor: compute positions from the two sizes and not from scale_factor.
    """

    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None


class UpsamplingNearest2d(_Upsample):
    """Resamples images to another size, each output being the nearest input.

    Shape: input (N, C, H, W), output (N, C, *size).

    Args:
        size: the output's height and width, or one for both.
        scale_factor: output over input size, for both or each; one of the two must be given.
    """

    mode: ClassVar[str] = "nearest"
    align_corners: ClassVar[bool | None] = None
    recompute_scale_factor: ClassVar[bool | None] = None


class UpsamplingBilinear2d(_Upsample):
    """:class:`UpsamplingNearest2d` by bilinear interpolation, with aligned corners."""

    mode: ClassVar[str] = "bilinear"
    align_corners: ClassVar[bool | None] = True
    recompute_scale_factor: ClassVar[bool | None] = None
