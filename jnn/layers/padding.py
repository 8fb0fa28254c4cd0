"""Padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels.padding import extended, filled

Array = jax.Array


@function
def pad(input: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    """Extend or crop the trailing dimensions.

    Shape: input (*), output (*) with pad[2i] + pad[2i + 1] more elements in the i-th dimension from the last.

    Args:
        pad: (left, right) of the last dimension, then of the one before it, and so on. A negative number crops.
        mode: ``"constant"``; or, for the last 1, 2 or 3 dimensions of an input with one or two more, ``"reflect"``
            (mirrored without the edge), ``"replicate"`` (the edge repeated) or ``"circular"`` (from the other end).
        value: what ``"constant"`` fills in; 0 when None.

    Raises:
        RuntimeError: an odd number of sides, more sides than the input has, a crop of more than there is, a
            reflection of the whole dimension or more, a wrap of more than the whole dimension, a value without ``"constant"``.
        NotImplementedError: an unknown mode, or one that is not defined for this number of sides and dimensions.
    """
    checks.require(isinstance(pad, tuple), "pad", "pad must be a sequence of ints", TypeError, pad=pad)
    pad = tuple(checks.integer("pad", "pad", p) for p in pad)
    shapes = {"pad": pad, "input.shape": input.shape}
    checks.require(len(pad) % 2 == 0, "pad", "pad must have two numbers for each dimension", RuntimeError, **shapes)
    checks.require(len(pad) <= 2 * input.ndim, "pad", "pad must have no more sides than input", RuntimeError, **shapes)
    sides = list(zip(range(input.ndim - 1, -1, -1), pad[::2], pad[1::2]))
    fits = all(input.shape[axis] + low + high >= 0 for axis, low, high in sides)
    checks.require(fits, "pad", "a negative pad must leave no dimension below 0", RuntimeError, **shapes)
    if mode == "constant":
        return filled(input, 0 if value is None else value, tuple(sides))
    extend = _EXTEND.get(mode)
    if extend is None:
        checks.fail("pad", "mode must be constant, reflect, replicate or circular", NotImplementedError, mode=mode)
    checks.require(not value, "pad", f"mode {mode!r} takes no value", RuntimeError, value=value)
    known = 1 <= len(sides) <= 3 and input.ndim - len(sides) in (1, 2)
    checks.require(known, "pad", f"mode {mode!r} pads the last n dimensions of n + 1 or n + 2, n <= 3", NotImplementedError, **shapes)
    return extended(extend, input, tuple(sides))


def _crop(x: Array, axis: int, low: int, high: int) -> Array:
    """Without the first ``-low`` and the last ``-high`` elements, where these are negative."""
    return lax.slice_in_dim(x, max(-low, 0), x.shape[axis] + min(high, 0), axis=axis)


def _reflect(x: Array, axis: int, low: int, high: int) -> Array:
    size = x.shape[axis]
    checks.require(
        max(low, high) < size, "pad", "a reflection must be smaller than its dimension", RuntimeError, pad=(low, high), size=size
    )
    before = lax.rev(lax.slice_in_dim(x, 1, 1 + max(low, 0), axis=axis), (axis,))
    after = lax.rev(lax.slice_in_dim(x, size - 1 - max(high, 0), size - 1, axis=axis), (axis,))
    return _crop(lax.concatenate([before, x, after], axis), axis, low, high)


def _replicate(x: Array, axis: int, low: int, high: int) -> Array:
    size = x.shape[axis]
    checks.require(size > 0, "pad", "an empty dimension has no edge to repeat", RuntimeError, shape=x.shape)

    def repeated(start: int, times: int) -> Array:
        edge = lax.slice_in_dim(x, start, start + 1, axis=axis)
        return jnp.broadcast_to(edge, (*x.shape[:axis], max(times, 0), *x.shape[axis + 1 :]))

    return _crop(lax.concatenate([repeated(0, low), x, repeated(size - 1, high)], axis), axis, low, high)


def _circular(x: Array, axis: int, low: int, high: int) -> Array:
    x = _crop(x, axis, low, high)
    size = x.shape[axis]
    checks.require(max(low, high) <= size, "pad", "padding must wrap around no more than once", RuntimeError, pad=(low, high), size=size)
    before = lax.slice_in_dim(x, size - max(low, 0), size, axis=axis)
    return lax.concatenate([before, x, lax.slice_in_dim(x, 0, max(high, 0), axis=axis)], axis)


_EXTEND = {"reflect": _reflect, "replicate": _replicate, "circular": _circular}


@layer
class _Pad(Layer):
    ndim: ClassVar[int]
    mode: ClassVar[str]
    padding: int | tuple[int, ...]

    def validate(self) -> None:
        sides = self.padding if isinstance(self.padding, tuple) else (self.padding,) * (2 * self.ndim)
        self._set(padding=tuple(checks.integer(self, "padding", side) for side in sides))

    def compute(self, s: Any, input: Array) -> Array:
        return pad(input, self.padding, self.mode)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{self.padding}"


@layer
class _ConstantPad(_Pad):
    mode = "constant"
    value: float

    def compute(self, s: Any, input: Array) -> Array:
        return pad(input, self.padding, self.mode, self.value)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


@layer
class _ZeroPad(_Pad):
    mode = "constant"
    value: ClassVar[float] = 0.0


@layer
class _ReflectionPad(_Pad):
    mode = "reflect"


@layer
class _ReplicationPad(_Pad):
    mode = "replicate"


@layer
class _CircularPad(_Pad):
    mode = "circular"

    def compute(self, s: Any, input: Array) -> Array:
        checks.rank(self, input, (self.ndim + 1, self.ndim + 2), ValueError)
        return super().compute(s, input)


@layer
class ConstantPad1d(_ConstantPad):
    """Extends or crops the last dimension with a constant.

    Shape: input (*, L), output (*, left + L + right).

    Args:
        padding: elements to add on both sides, or (left, right). A negative number crops.
        value: what to fill in.

    Raises:
        RuntimeError: a crop of more than there is, at the call.
    """

    ndim = 1


@layer
class ConstantPad2d(_ConstantPad):
    """:class:`ConstantPad1d` of the last two dimensions (H, W); ``padding`` is (left, right, top, bottom)."""

    ndim = 2


@layer
class ConstantPad3d(_ConstantPad):
    """:class:`ConstantPad1d` of the last three dimensions (D, H, W); ``padding`` is (left, right, top, bottom, front, back)."""

    ndim = 3


@layer
class ZeroPad1d(_ZeroPad):
    """Extends or crops the last dimension with zeros.

    Shape: input (*, L), output (*, left + L + right).

    Args:
        padding: elements to add on both sides, or (left, right). A negative number crops.

    Raises:
        RuntimeError: a crop of more than there is, at the call.
    """

    ndim = 1


@layer
class ZeroPad2d(_ZeroPad):
    """:class:`ZeroPad1d` of the last two dimensions (H, W); ``padding`` is (left, right, top, bottom)."""

    ndim = 2


@layer
class ZeroPad3d(_ZeroPad):
    """:class:`ZeroPad1d` of the last three dimensions (D, H, W); ``padding`` is (left, right, top, bottom, front, back)."""

    ndim = 3


@layer
class ReflectionPad1d(_ReflectionPad):
    """Extends the last dimension by its mirror image, without the edge itself.

    Shape: input (N, C, L) or (C, L), output (N, C, left + L + right) or (C, left + L + right).

    Args:
        padding: elements to add on both sides, or (left, right). A negative number crops.

    Raises:
        RuntimeError: padding as long as the dimension or longer, at the call.
    """

    ndim = 1


@layer
class ReflectionPad2d(_ReflectionPad):
    """:class:`ReflectionPad1d` of the last two dimensions (H, W); ``padding`` is (left, right, top, bottom)."""

    ndim = 2


@layer
class ReflectionPad3d(_ReflectionPad):
    """:class:`ReflectionPad1d` of the last three dimensions (D, H, W); ``padding`` is (left, right, top, bottom, front, back)."""

    ndim = 3


@layer
class ReplicationPad1d(_ReplicationPad):
    """Extends the last dimension by repeating its first and last element.

    Shape: input (N, C, L) or (C, L), output (N, C, left + L + right) or (C, left + L + right).

    Args:
        padding: elements to add on both sides, or (left, right). A negative number crops.

    Raises:
        RuntimeError: an empty dimension, at the call.
    """

    ndim = 1


@layer
class ReplicationPad2d(_ReplicationPad):
    """:class:`ReplicationPad1d` of the last two dimensions (H, W); ``padding`` is (left, right, top, bottom)."""

    ndim = 2


@layer
class ReplicationPad3d(_ReplicationPad):
    """:class:`ReplicationPad1d` of the last three dimensions (D, H, W); ``padding`` is (left, right, top, bottom, front, back)."""

    ndim = 3


@layer
class CircularPad1d(_CircularPad):
    """Extends the last dimension by the elements at its other end.

    Shape: input (N, C, L) or (C, L), output (N, C, left + L + right) or (C, left + L + right).

    Args:
        padding: elements to add on both sides, or (left, right). A negative number crops.

    Raises:
        RuntimeError: padding longer than the dimension, at the call.
        ValueError: an input of another rank, at the call.
    """

    ndim = 1


@layer
class CircularPad2d(_CircularPad):
    """:class:`CircularPad1d` of the last two dimensions (H, W); ``padding`` is (left, right, top, bottom)."""

    ndim = 2


@layer
class CircularPad3d(_CircularPad):
    """:class:`CircularPad1d` of the last three dimensions (D, H, W); ``padding`` is (left, right, top, bottom, front, back)."""

    ndim = 3
