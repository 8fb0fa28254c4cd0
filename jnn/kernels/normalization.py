"""How normalisations are lowered: statistics of an array over some of its axes, what they make of it, and the gradients."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import differentiable, foreign
from .platform import native, settled
from .sums import repeats

Array = jax.Array
Arrays = tuple[Array, ...]
Ints = tuple[int, ...]

_SHORT_ROW = 1000


class Layout(NamedTuple):
    """What statistics are of. An array's axes fall into samples, groups, members of a group, and places, in this order.

    Args:
        groups, members, places: the first axis of each.
        eps: added to the variance.
        across: whether samples share their statistics; groups then have one member.
        centered: whether the mean is taken off; else the variance is the mean square, and there is no bias.
    """

    groups: int
    members: int
    places: int
    eps: float
    across: bool = False
    centered: bool = True

    def axes(self, x: Array) -> Ints:
        """Those that statistics are taken over."""
        return (*range(self.groups if self.across else 0), *range(self.members, x.ndim))

    def spread(self, of_channel: Array, x: Array) -> Array:
        """A value for each member of each group, in a shape that broadcasts with ``x``."""
        return of_channel.reshape((1,) * self.groups + of_channel.shape + (1,) * (x.ndim - self.places))


def normalized(layout: Layout, x: Array, weight: Array | None, bias: Array | None) -> Arrays:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``; the mean and the biased variance, through which no gradient flows.

    ``weight`` and ``bias`` have a value for each member of each group, in any shape. What is returned has the dtype of ``x``.
    """
    assert layout.centered or bias is None
    # What is left of a single value is nothing, to the last digit, in which the library's products would differ.
    single = all(x.shape[axis] == 1 for axis in layout.axes(x))
    return (_as_defined if single else _normalized)(layout, x, *_of_channels(layout, x, weight, bias))


def normalized_by(layout: Layout, x: Array, *of_channels: Array | None) -> Array:
    """The same with a mean and a variance, which come first, for each member of each group: XLA fuses it with what follows."""
    mean, variance, weight, bias = (layout.spread(v, x) for v in _of_channels(layout, x, *of_channels))
    return (x - mean) * lax.rsqrt(variance + layout.eps) * weight + bias


def _of_channels(layout: Layout, x: Array, *arrays: Array | None) -> Arrays:
    """``arrays`` by group and member in the dtype of ``x``, the last two being a weight and a bias."""
    shape = x.shape[layout.groups : layout.places]
    missing = (0,) * (len(arrays) - 2) + (1, 0)
    return tuple(jnp.full(shape, m, x.dtype) if a is None else a.astype(x.dtype).reshape(shape) for a, m in zip(arrays, missing))


def _as_defined(layout: Layout, x: Array, weight: Array, bias: Array) -> Arrays:
    axes = layout.axes(x)
    if layout.centered:
        center, variance, _ = moments(x, axes)
        y = standardized(x, axes, layout.eps)
    else:
        variance = jnp.mean(jnp.square(x), axes, keepdims=True)
        y, center = x * lax.rsqrt(variance + layout.eps), jnp.zeros_like(variance)
    mean, variance = (lax.stop_gradient(lax.squeeze(v, axes)) for v in (center, variance))
    return y * layout.spread(weight, x) + layout.spread(bias, x), mean, variance


def _slopes(layout: Layout, g: Array, x: Array, mean: Array, variance: Array, weight: Array) -> Arrays:
    return jax.vjp(lambda *arrays: _as_defined(layout, *arrays)[0], x, weight, jnp.zeros_like(weight))[1](g)


def _attributes(layout: Layout) -> dict[str, Any]:
    firsts = np.array([layout.groups, layout.members, layout.places], np.int64)
    return {"firsts": firsts, "eps": np.float64(layout.eps)} | {name: getattr(layout, name) for name in ("across", "centered")}


_value = foreign("jnn_norm", _as_defined, lambda layout: _attributes(layout) | {"alone": True})
_forward = foreign("jnn_norm", _as_defined, lambda layout: _attributes(layout) | {"alone": False})
_backward = foreign("jnn_norm_backward", _slopes, _attributes)


def _with_residuals(layout: Layout, *arrays: Array) -> Any:
    outputs = _forward(layout, *arrays)
    return outputs, outputs[1:]


def _slopes_of_all(layout: Layout, cotangents: Arrays, residuals: Arrays, arrays: Arrays, _: Any) -> Arrays:
    return _backward(layout, cotangents[0], arrays[0], *residuals, arrays[1])


_normalized = differentiable(_as_defined, _with_residuals, _slopes_of_all, _value)


def moments(x: Array, axes: Ints) -> tuple[Array, Array, Array]:
    """Mean and biased variance over ``axes``, which stay as ones, and the deviations from the mean: two passes."""
    center = settled(jnp.mean(x, axes, keepdims=True))
    deviation = x - center
    return center, jnp.mean(jnp.square(deviation), axes, keepdims=True), deviation


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def standardized(x: Array, axes: Ints, eps: float) -> Array:
    """``x`` less its mean over ``axes``, over the root of its biased variance and ``eps``."""
    _, variance, deviation = moments(x, axes)
    return deviation * settled(lax.rsqrt(variance + eps))


@standardized.defjvp
def _standardized_jvp(axes: Ints, eps: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # Reverse mode transposes this: it reads the deviations and the cotangent once for each of two sums, once for the result.
    (x,), (moved,) = primals, tangents
    _, variance, deviation = moments(x, axes)
    scale = settled(lax.rsqrt(variance + eps))
    shift = scale * jnp.mean(moved, axes, keepdims=True)
    stretch = scale * (scale * jnp.mean(deviation * scale * moved, axes, keepdims=True))
    shift, stretch = settled(shift), settled(stretch)
    sizes = [x.shape[axis] for axis in axes]
    known = all(isinstance(size, int) for size in sizes)
    if not native() and known and min(axes) == x.ndim - len(axes) and math.prod(sizes) <= _SHORT_ROW:
        # Sums of short rows share their pass; those of long ones and of columns are slower so.
        shift, stretch = repeats([lax.squeeze(v, axes) for v in (shift, stretch)], axes, x.shape)
    return standardized(x, axes, eps), scale * moved - shift - deviation * stretch
