"""Maxima and sums over windows, one axis at a time.

``lax.reduce_window`` takes the gradient of a maximum by a scalar loop on the CPU, splits no ties as torch does and knows
no positions. Here a window is joined from strided slices of its axis. That is elementwise work which XLA fuses, plainly
differentiable in every mode, and one rule for ties and NaN gives the values, their positions and their gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import dtypes
from . import sampling
from .foreign import Arrays, foreign, takes
from .multilinear import multilinear
from .platform import native
from .resampling import Taps, are_small, resample, resample_joined, resample_space
from .sums import sum_last, sums
from .taps import numbers

Array = jax.Array
Leaves = tuple[Array, ...]

# So many bins are cut out one by one; more are gathered.
_FEW_BINS = 8
# The library numbers the places of a plane by 32 bits.
_MOST = 2**31 - 1
# Maxima along rows alone are XLA's where rows have fewer numbers, in steps of one and in others: 0.2 to 0.9 of the time; of more, the
# library takes 0.2 to 0.9, but for windows without padding in steps that it cannot shuffle, or short ones in steps of two: 1.2 to 4.3.
_LONG_ROW, _LONG_ROW_IN_STEPS, _SHUFFLED, _SHORT_IN_TWOS, _SHORT_IN_STEPS = 8, 24, (1, 2, 4, 8), 4, 3
# Windows of up to so many along rows, none of which overlap, are found with their places as bins are, by the columns of a window: 0.11 to
# 0.9 of the time of filling a vector with windows. Values alone are, however many, where windows of rows alone and of planes have so many
# places along rows: 0.2 to 1.2 of the time of slices, of 5 x 5 places of 40 x 40 up to 2. XLA's reductions lose NaN.
_FEW_WINDOWS, _LONG_ALONE, _LONG_IN_PLANES = 14, 10, 3
# Of those that overlap along more axes than one the library takes 0.4 to 1.1 of the time of slices where there are so many along a row and
# some are of padding; else 0.7 to 3.4.
_MANY_OVERLAPPING = 9
# Planes of so many places, of which there are so many, are side by side in the library's vectors: 0.2 to 1.1 of the time of slices where
# windows read what others do or padding, of padded rows from so many numbers on.
_BESIDE, _MOST_BESIDE, _LEAST_BESIDE = 32, 4096, 10
# Sums over so many places in steps of one are of shifted rows: 0.35 to 0.9 of the time of slices of a padded one, of 15 places 2.8.
_SHORT = 9
# Sums over windows with padding or of what others read are resampled by the library, where there are so many planes: along planes of so
# many places times a window's, or rows of such sizes in steps of more than one. 0.3 to 0.95 of the time of slices, of 7 x 7 in steps of one
# 1.5 forward and 0.45 with the gradient; of shorter or longer rows or of fewer planes 1.1 to 3.
_MOST_JOINED, _RESAMPLED = 16384, range(10, 2049)
# Windows of so few places are not, along padded rows: slices take 0.6 to 0.8 with the gradient. Without padding, of rows or of so few
# places along planes, only the gradient is: slices take 0.3 to 0.85 forward, and with it 0.75 (4 places in steps of 2) to 3.5.
_FEW_SUMMED = 3


class Window(NamedTuple):
    """``count`` even windows along an axis: the i-th has ``size`` places, ``dilation`` apart, the first at ``i * stride - before``."""

    size: int
    stride: int
    dilation: int
    before: int
    count: int

    def places(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, size of a window): the places of each, and which are among ``size``."""
        places = self.starts()[:, None] + np.arange(self.size) * self.dilation
        return places, (places >= 0) & (places < size)

    def reaches(self, size: int) -> bool:
        """Whether each window has one of ``size`` places."""
        return bool(self.places(size)[1].any(1).all())

    def is_whole(self, size: int) -> bool:
        """Whether there is one window, of all of ``size`` places."""
        return self == Window(size, self.stride, 1, 0, 1)

    def is_run_of(self, size: int) -> bool:
        """Whether each window is of neighbours among ``size`` places, none before or behind them."""
        return self.dilation == 1 and self.before == 0 and (self.count - 1) * self.stride + self.size <= size

    def starts(self) -> np.ndarray:
        """The first place of each window."""
        return np.arange(self.count) * self.stride - self.before

    def lengths(self) -> np.ndarray:
        """The number of places of each window."""
        return np.full(self.count, self.size)


class Bins(NamedTuple):
    """``count`` bins that cover an axis of ``size`` places: bin i from ``floor(i size / count)`` to ``ceil((i + 1) size / count)``."""

    size: int
    count: int

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(count, longest): the places of each bin, the last one repeated, and which are no repetitions."""
        lengths = self.lengths()[:, None]
        taps = np.arange(lengths.max())
        return self.starts()[:, None] + np.minimum(taps, lengths - 1), taps < lengths

    def starts(self) -> np.ndarray:
        """The first place of each bin."""
        return np.arange(self.count) * self.size // self.count

    def lengths(self) -> np.ndarray:
        """The number of places in each bin."""
        i = np.arange(self.count)
        return -(-(i + 1) * self.size // self.count) - i * self.size // self.count


@functools.partial(jax.jit, static_argnames=("windows", "positions"))
def maximum(x: Array, windows: tuple[Window | Bins, ...], positions: bool) -> tuple[Array, Array | None]:
    """The maxima over windows of the trailing axes and, if wanted, their flat positions among the places of those axes.

    Ties go to the first place in row-major order, the gradient too; a window that holds NaN gives its last NaN.
    """
    if all(isinstance(w, Window) for w in windows) and not _in_library(x, windows):
        return _maximum(x, windows, positions)
    return _maximum_by_place(windows, x, [], positions)


@functools.partial(jax.jit, static_argnames=("sizes", "positions"))
def maximum_at(x: Array, starts: Sequence[Array], sizes: tuple[int, ...], positions: bool) -> tuple[Array, Array | None]:
    """:func:`maximum` over windows that start where arrays say, one an axis."""
    return _maximum_by_place(
        None, x, [start[:, None] + np.arange(size)[None] for start, size in zip(starts, sizes, strict=True)], positions
    )


@functools.partial(jax.jit, static_argnames=("windows",))
def total(x: Array, windows: tuple[Window | Bins, ...]) -> Array:
    """The sums over windows of the trailing axes."""
    if all(isinstance(w, Window) and w.is_whole(n) for w, n in zip(windows, x.shape[x.ndim - len(windows) :], strict=True)):
        return lax.expand_dims(sum_last(x, len(windows)).astype(x.dtype), range(x.ndim - len(windows), x.ndim))
    if takes(x) and all(isinstance(w, Bins) for w in windows) and are_small(taps := [_taps(w) for w in windows]):
        return resample_space(x, taps)
    if _is_resampled(x, windows):
        return (_slid_forward if _slides_forward(x, windows) else _resampled_sums)(windows, x)
    only = windows[0] if len(windows) == 1 else None
    if isinstance(only, Window) and only.stride == 1 and only.size <= _SHORT and not native():
        return _total_of_shifted(x, only)
    return _sums_of_slices(windows, x)


def _maximum(x: Array, windows: Sequence[Any], positions: bool) -> tuple[Array, Array | None]:
    """``windows`` are by axis a ``Window`` or ``Bins``, or the places (count, size)."""
    leaves: Leaves = (x,)
    if positions:
        shape = x.shape[x.ndim - len(windows) :]
        flat = jnp.arange(math.prod(shape), dtype=dtypes.index()).reshape(shape)
        leaves += (jnp.broadcast_to(flat, x.shape),)
    # From the last axis to the first, for that is what makes the first hit along each axis the first in row-major order.
    for back, window in enumerate(reversed(windows), 1):
        leaves = _maximum_along(leaves, x.ndim - back, window)
    values, *places = leaves
    return values, places[0] if places else None


def _maximum_by_place(
    windows: tuple[Window | Bins, ...] | None, x: Array, places: list[Array], positions: bool
) -> tuple[Array, Array | None]:
    """``_maximum`` over ``windows``, or over ``places`` where there are none, with a gradient that adds one number for each."""
    values = _values_by_place(windows, positions, x, places)
    return values, _places(windows, x, places).astype(dtypes.index()) if positions else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _values_by_place(windows: tuple[Window | Bins, ...] | None, found: bool, x: Array, places: list[Array]) -> Array:
    """The values, as they are ``found`` beside their places or, which is faster, by themselves."""
    if windows is None or not _in_library(x, windows):
        return _maximum(x, windows or places, False)[0]
    return _maxima(windows, x)[0] if found else _values(windows, x)


@_values_by_place.defjvp
def _values_by_place_jvp(
    windows: tuple[Window | Bins, ...] | None, _: bool, primals: tuple[Array, list[Array]], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    # Reverse mode adds a number for each window. The gathers that the values may come by would add one for each of its places.
    (x, places), (moved, _none) = primals, tangents
    return _values_by_place(windows, True, x, places), _picked(moved, _places(windows, x, places), len(windows or places))


def _places(windows: tuple[Window | Bins, ...] | None, x: Array, places: list[Array]) -> Array:
    # The library gives values and places in one call, and equal calls are one.
    x = lax.stop_gradient(x)
    flat = _maxima(windows, x)[1] if _in_library(x, windows) else _maximum(x, windows or places, True)[1]
    assert flat is not None
    return flat


def _picked(x: Array, flat: Array, axes: int) -> Array:
    """The elements of ``x`` at the places ``flat`` among those of its trailing ``axes``."""
    outer, plane = x.shape[: x.ndim - axes], math.prod(x.shape[x.ndim - axes :])
    if takes(x, flat) and plane <= _MOST:
        planes, index = x.reshape(math.prod(outer), 1, plane), flat.reshape(math.prod(outer), 1, -1).astype(np.int32)
        form = sampling.Form(planes=True, missing=np.nan, weighted=False)
        return sampling.sample(form, planes, jnp.ones((1, 1, 1), x.dtype), index).reshape(flat.shape)
    picked = jnp.take_along_axis(x.reshape(*outer, plane), flat.reshape(*outer, -1), -1, mode="promise_in_bounds")
    return picked.reshape(flat.shape)


def _in_library(x: Array, windows: tuple[Window | Bins, ...] | None) -> bool:
    """Whether the library finds the maxima: of bins, or of even windows, each of which has a place in ``x``."""
    if windows is None or len(windows) > 3 or not takes(x):
        return False
    sizes = x.shape[x.ndim - len(windows) :]
    return math.prod(sizes) <= _MOST and (
        _are_bins(windows, x) or all(isinstance(w, Window) and w.reaches(n) for w, n in zip(windows, sizes, strict=True))
    )


def _are_bins(windows: tuple[Window | Bins, ...], x: Array) -> bool:
    """Whether windows are of all of ``x``, or runs of its places, some of them uneven."""
    axes = [*zip(windows, x.shape[x.ndim - len(windows) :], strict=True)]
    if all(isinstance(w, Window) and w.is_whole(n) for w, n in axes):
        return True
    runs = all(isinstance(w, Bins) or w.is_run_of(n) for w, n in axes)
    return runs and any(isinstance(w, Bins) for w in windows)


def _are_runs(windows: tuple[Window | Bins, ...], x: Array) -> bool:
    """Whether windows are even, and of neighbours among the places of ``x`` alone."""
    sizes = x.shape[x.ndim - len(windows) :]
    return all(isinstance(w, Window) and w.is_run_of(n) for w, n in zip(windows, sizes, strict=True))


def _overlapping(windows: tuple[Window | Bins, ...]) -> list[Window]:
    """Those that read what their neighbours do."""
    return [w for w in windows if isinstance(w, Window) and w.size > w.stride]


def _maxima(windows: Any, x: Array) -> Arrays:
    """Values and places by the library."""
    bins = _are_bins(windows, x) or (windows[-1].count <= _FEW_WINDOWS and _are_runs(windows, x) and not _overlapping(windows))
    return (_maxima_of_bins if bins else _maxima_of_windows)(windows, x)


def _as_found(windows: tuple[Window | Bins, ...], x: Array) -> Arrays:
    values, places = _maximum(x, windows, True)
    assert places is not None
    return values, places.astype(np.int32)


def _values(windows: tuple[Window | Bins, ...], x: Array) -> Array:
    """Values alone of windows that the library may find."""
    last, runs, overlap = windows[-1], _are_runs(windows, x), _overlapping(windows)
    long = int(last.lengths().max()) >= (_LONG_IN_PLANES if len(windows) > 1 else _LONG_ALONE)
    if _are_bins(windows, x) or (long and runs and not overlap):
        return _values_of_bins(windows, x)[0]
    # XLA is faster where windows read what others do along one axis at most, but for long rows, and where none are of padding.
    many = len(overlap) > 1 and not runs and last.count >= _MANY_OVERLAPPING
    by_library = many or (_fit_beside(x, len(windows)) and not (runs and (len(windows) == 1 or not overlap)))
    by_library |= len(windows) == 1 == len(overlap) and _is_long(overlap[0], x.shape[-1])
    return _values_of_windows(windows, x)[0] if by_library else _maximum(x, windows, False)[0]


def _fit_beside(x: Array, axes: int) -> bool:
    """Whether planes of the last ``axes`` are so small and so many that the library has them side by side."""
    sizes = x.shape[x.ndim - axes :]
    return _outer(x, axes) >= _BESIDE and math.prod(sizes) <= _MOST_BESIDE and (axes > 1 or sizes[0] >= _LEAST_BESIDE)


def _outer(x: Array, axes: int) -> int:
    """The number of planes of the last ``axes``."""
    return math.prod(x.shape[: x.ndim - axes])


def _is_long(w: Window, size: int) -> bool:
    """Whether the library is faster than XLA at windows that overlap along a row of ``size`` numbers."""
    slow = w.size <= (_SHORT_IN_TWOS if w.stride == 2 else _SHORT_IN_STEPS * w.stride if w.stride not in _SHUFFLED else 0)
    return size >= (_LONG_ROW if w.stride == 1 else _LONG_ROW_IN_STEPS) and not (slow and w.is_run_of(size))


def _attributes(windows: tuple[Window, ...]) -> dict[str, Any]:
    return {name: np.asarray([getattr(w, name) for w in windows], np.int64) for name in ("size", "stride", "dilation", "before")}


def _attributes_of_bins(bins: tuple[Window | Bins, ...]) -> dict[str, Any]:
    starts, sizes = (np.concatenate(numbers).astype(np.int64) for numbers in zip(*((b.starts(), b.lengths()) for b in bins), strict=True))
    return {"starts": starts, "sizes": sizes, "axes": np.int64(len(bins))}


def _values_as_defined(windows: tuple[Window, ...], x: Array) -> Arrays:
    return (_maximum(x, windows, False)[0],)


_maxima_of_windows = foreign("jnn_maxima", _as_found, _attributes)
_values_of_windows = foreign("jnn_maxima", _values_as_defined, _attributes)
_values_of_bins = foreign("jnn_maxima_of_bins", _values_as_defined, _attributes_of_bins)
_maxima_of_bins = foreign("jnn_maxima_of_bins", _as_found, _attributes_of_bins)


def _maximum_along(leaves: Leaves, axis: int, window: Any) -> Leaves:
    if isinstance(window, Window):
        x, *flat = leaves
        lowest = -np.inf if jnp.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        return _slide((_pad(x, axis, window, lowest), *(_pad(f, axis, window, 0) for f in flat)), axis, window, _greater)
    if isinstance(window, Bins) and window.count <= _FEW_BINS:
        runs = [(int(start), int(size)) for start, size in zip(window.starts(), window.lengths(), strict=True)]
        bins = [_slide(_cut(leaves, axis, start, 1, size), axis, Window(size, size, 1, 0, 1), _greater) for start, size in runs]
        return tuple(jnp.concatenate(parts, axis) for parts in zip(*bins, strict=True))
    places = window.places()[0] if isinstance(window, Bins) else window
    taps = tuple(_at(x, axis, places) for x in leaves)
    joined = _slide(taps, axis + 1, Window(places.shape[1], places.shape[1], 1, 0, 1), _greater)
    return tuple(lax.squeeze(x, (axis + 1,)) for x in joined)


def _at(x: Array, axis: int, places: Any) -> Array:
    """The elements at places along an axis, each of which is there: to look for others takes as long as to gather."""
    return x.at[(slice(None),) * axis + (places,)].get(mode="promise_in_bounds", wrap_negative_indices=False)


@functools.lru_cache(1024)
def _taps(bins: Bins) -> Taps:
    """Equal for equal bins, so that what is compiled for them is found again."""
    places, filled = bins.places()
    return Taps(bins.size, places, filled.astype(np.float64))


@functools.lru_cache(1024)
def _taps_of_window(w: Window, size: int) -> Taps:
    places, filled = w.places(size)
    return Taps(size, np.clip(places, 0, size - 1), filled.astype(np.float64))


def _is_resampled(x: Array, windows: tuple[Window | Bins, ...]) -> bool:
    """Whether the library is faster at sums over ``windows`` of ``x``, or at their gradient, than XLA is at slices."""
    even, runs = [w for w in windows if isinstance(w, Window)], _are_runs(windows, x)
    if not takes(x) or _outer(x, len(windows)) < _BESIDE or len(even) < len(windows) or (runs and not _overlapping(windows)):
        return False
    if len(even) > 1:
        return math.prod(w.count * w.size for w in even) <= _MOST_JOINED
    return x.shape[-1] in _RESAMPLED and even[0].stride > 1 and (runs or even[0].size > _FEW_SUMMED)


def _slides_forward(x: Array, windows: tuple[Window | Bins, ...]) -> bool:
    """Whether XLA is faster at the sums by themselves."""
    return _are_runs(windows, x) and (len(windows) == 1 or max(w.size for w in windows) <= _FEW_SUMMED)


def _taps_of(windows: Any, sizes: tuple[int, ...]) -> list[Taps]:
    return [_taps_of_window(w, n) for w, n in zip(windows, sizes, strict=True)]


def _resampled_sums(windows: Any, x: Array) -> Array:
    return resample_joined(x, _taps_of(windows, x.shape[x.ndim - len(windows) :]))


def _sums_of_slices(windows: tuple[Window | Bins, ...], x: Array) -> Array:
    for axis, window in enumerate(windows, x.ndim - len(windows)):
        x = _total_along(x, axis, window)
    return x


def _resampled_back(windows: Any, g: Array, like: jax.ShapeDtypeStruct) -> Array:
    return resample_joined(g, [taps.adjoint for taps in _taps_of(windows, like.shape[-len(windows) :])])


_slid_forward = multilinear(_sums_of_slices, _resampled_back, by_sample=lambda windows: windows)


def _total_along(x: Array, axis: int, window: Window | Bins) -> Array:
    if isinstance(window, Bins):
        if takes(x):
            return resample(x, axis, _taps(window))
        places, filled = window.places()
        filled = np.expand_dims(filled, [a for a in range(x.ndim + 1) if a not in (axis, axis + 1)])
        return jnp.where(filled, _at(x, axis, places), 0).sum(axis + 1, dtype=x.dtype)
    size, stride, dilation, before, count = window
    if size == stride and dilation == 1 and before == 0 and isinstance(count, int) and count * size <= x.shape[axis]:
        x = lax.slice_in_dim(x, 0, count * size, axis=axis)
        x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return x.sum(axis + 1, dtype=x.dtype) if native() else sums([x], [axis + 1])[0]
    return _slide((_pad(x, axis, window, 0),), axis, window, lambda a, b, _: (a[0] + b[0],))[0]


def _total_of_shifted(x: Array, w: Window) -> Array:
    """The sums over windows of the last axis in steps of one: of ``x`` itself, shifted by each place of a window."""
    befores = [w.before - i * w.dilation for i in range(w.size)]
    shifted = [lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(b, w.count - x.shape[-1] - b, 0)]) for b in befores]
    return functools.reduce(lax.add, shifted)


def _pad(x: Array, axis: int, w: Window, value: float) -> Array:
    """``x`` with exactly the places that the windows cover, or fewer at the end where they step over some."""
    after = (w.count - 1) * w.stride + (w.size - 1) * w.dilation + 1 - w.before - x.shape[axis]
    config = [(w.before, after, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return lax.pad(x, np.asarray(value, x.dtype), config)


def _greater(left: Leaves, right: Leaves, vacant: np.ndarray | None) -> Leaves:
    """The greater of two neighbouring runs of places; the right one where the left is ``vacant``, being padding only."""
    a, b = left[0], right[0]
    better = (b > a) | (b != b)
    if vacant is not None:
        better |= vacant
    return tuple(jnp.where(better, later, earlier) for earlier, later in zip(left, right, strict=True))


def _cut(leaves: Leaves, axis: int, start: int, stride: int, count: int) -> Leaves:
    return tuple(lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis) for x in leaves)


def _slide(leaves: Leaves, axis: int, w: Window, join: Callable[[Leaves, Leaves, np.ndarray | None], Leaves]) -> Leaves:
    """The windows of padded leaves, each joined from left to right.

    A window is made of a few equal parts, which are windows themselves and are shared between neighbours: the operations
    are as the sum of the prime factors of its size, and for large primes as its logarithm.
    """
    if w.size == 1:
        return _cut(leaves, axis, 0, w.stride, w.count)
    parts = next((p for p in (2, 3, 5, 7) if w.size % p == 0), 2)
    part = w.size // parts
    shift = part * w.dilation
    grid = math.gcd(w.stride, shift)
    needed = ((w.count - 1) * w.stride + (parts - 1) * shift) // grid + 1
    base = _slide(leaves, axis, w._replace(size=part, stride=grid, count=needed), join)
    pieces = [_cut(base, axis, i * shift // grid, w.stride // grid, w.count) for i in range(parts)]
    if parts * part < w.size:
        pieces.append(_cut(leaves, axis, parts * shift, w.stride, w.count))
    joined = pieces[0]
    for i, piece in enumerate(pieces[1:], 1):
        # As many windows have no place of the array on their left; how many there are in all may be left open.
        empty = -((w.before - (i * part - 1) * w.dilation) // -w.stride)
        vacant = numbers(w.count).arange(w.count).reshape([-1 if a == axis else 1 for a in range(leaves[0].ndim)]) < empty
        joined = join(joined, piece, vacant if empty > 0 else None)
    return joined
