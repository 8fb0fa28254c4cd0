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
Ints = tuple[int, ...]

_SHORT_ROW = 1000


class Layout(NamedTuple):
    """What statistics are of. An array's axes fall into samples, groups, members of a group, and places, in this order.

    Args:
        groups, members, places: the first axis of each.
        eps: added to the variance.
        across: whether samples share their statistics; groups then have one member.
        centered: whether the mean is taken off; else the variance is the mean square.
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

    def broadcast(self, x: Array, of_channel: Array) -> Array:
        """A value for each member of each group, in a shape that broadcasts with ``x``."""
        shape = x.shape[self.groups : self.places]
        return of_channel.astype(x.dtype).reshape((1,) * self.groups + shape + (1,) * (x.ndim - self.places))


def normalized(layout: Layout, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Array, Array]:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``; the mean and the biased variance, through which no gradient flows.

    ``weight`` and ``bias`` have a value for each member of each group, in any shape. What is returned has the dtype of ``x``.
    """
    shape = x.shape[layout.groups : layout.places]
    weight = jnp.ones(shape, x.dtype) if weight is None else weight.astype(x.dtype).reshape(shape)
    bias = jnp.zeros(shape, x.dtype) if bias is None else bias.astype(x.dtype).reshape(shape)
    y, mean, variance = _normalized(layout, x, weight, bias)
    return y, mean, variance


def _as_defined(layout: Layout, x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    axes = layout.axes(x)
    if layout.centered:
        center, variance, _ = moments(x, axes)
        y = standardized(x, axes, layout.eps)
    else:
        variance = jnp.mean(jnp.square(x), axes, keepdims=True)
        y, center = x * lax.rsqrt(variance + layout.eps), jnp.zeros_like(variance)
    mean, variance = (lax.stop_gradient(lax.squeeze(v, axes)) for v in (center, variance))
    return y * layout.broadcast(x, weight) + layout.broadcast(x, bias), mean, variance


def _slopes_as_defined(layout: Layout, g: Array, mean: Array, variance: Array, x: Array, weight: Array) -> tuple[Array, ...]:
    bias = jnp.zeros_like(weight)
    return jax.vjp(lambda *arrays: _as_defined(layout, *arrays)[0], x, weight, bias)[1](g)


def _attributes(layout: Layout) -> dict[str, Any]:
    firsts = np.array([layout.groups, layout.members, layout.places], np.int64)
    return {"firsts": firsts, "across": layout.across, "centered": layout.centered, "eps": np.float64(layout.eps)}


_forward = foreign("jnn_norm", _as_defined, _attributes)
_backward = foreign("jnn_norm_backward", _slopes_as_defined, _attributes)


def _with_residuals(layout: Layout, *arrays: Array) -> tuple[Any, Any]:
    outputs = _forward(layout, *arrays)
    return outputs, outputs[1:]


_normalized = differentiable(
    _as_defined, _with_residuals, lambda layout, cotangents, residuals, arrays: _backward(layout, cotangents[0], *residuals, *arrays[:2])
)


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
