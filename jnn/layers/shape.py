"""Layers that move elements about: flattening, pixel and channel shuffles."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels import sampling

Array = jax.Array


@layer
class Flatten(Layer):
    """Makes one dimension of the dimensions ``start_dim`` to ``end_dim``.

    Shape: input (*before, *flattened, *after), output (*before, product of flattened, *after); of a scalar, (1,).

    Args:
        start_dim, end_dim: the first and the last dimension to flatten, counted from the end where negative.

    Raises:
        IndexError: the input has no such dimension.
        RuntimeError: start_dim comes after end_dim.
    """

    start_dim: int = 1
    end_dim: int = -1

    def compute(self, s: Any, input: Array) -> Array:
        start = checks.dim(self, self.start_dim, input.ndim, "start_dim")
        end = checks.dim(self, self.end_dim, input.ndim, "end_dim")
        checks.require(start <= end, self, "start_dim must not come after end_dim", RuntimeError, start_dim=start, end_dim=end)
        shape = input.shape or (1,)
        return input.reshape(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


@layer
class Unflatten(Layer):
    """Makes several dimensions of one.

    Shape: input (*before, product of unflattened_size, *after), output (*before, *unflattened_size, *after).

    Args:
        dim: the dimension to unflatten.
        unflattened_size: the new sizes; one of them may be -1, and follows from the others.

    Raises:
        TypeError: unflattened_size is not a tuple of ints.
        RuntimeError: unflattened_size does not multiply to the size of the dimension.
    """

    dim: int
    unflattened_size: tuple[int, ...]

    def validate(self) -> None:
        checks.require(
            isinstance(self.unflattened_size, tuple),
            self,
            "unflattened_size must be a tuple of ints",
            TypeError,
            unflattened_size=self.unflattened_size,
        )
        for size in self.unflattened_size:
            checks.integer(self, "unflattened_size", size)

    def compute(self, s: Any, input: Array) -> Array:
        dim, sizes = checks.dim(self, self.dim, input.ndim), self.unflattened_size
        size = input.shape[dim] if input.ndim else 1
        known = math.prod(n for n in sizes if n != -1)
        ok = sizes and min(sizes) >= -1 and (known == size if -1 not in sizes else sizes.count(-1) == 1 and known and size % known == 0)
        checks.require(ok, self, "unflattened_size must multiply to the size of dim", RuntimeError, unflattened_size=sizes, size=size)
        sizes = tuple(size // known if n == -1 else n for n in sizes)
        return input.reshape(*input.shape[:dim], *sizes, *input.shape[dim + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


def _check_factor(who: str, name: str, factor: int, input: Array) -> None:
    checks.integer(who, name, factor)
    checks.require(factor > 0, who, f"{name} must be positive", RuntimeError, **{name: factor})
    checks.require(input.ndim >= 3, who, "input must have at least three dimensions", RuntimeError, input=input)


@function
def pixel_shuffle(input: Array, upscale_factor: int) -> Array:
    """Turns channels into pixels: ``y[c, h r + i, w r + j] = x[c r^2 + i r + j, h, w]``, r the factor.

    Shape: input (*, C r^2, H, W), output (*, C, H r, W r).

    Raises:
        RuntimeError: the factor is not positive, the channels are no multiple of its square, or there are no channels and pixels.
    """
    _check_factor("pixel_shuffle", "upscale_factor", upscale_factor, input)
    *batch, channels, height, width = input.shape
    r = upscale_factor
    ok = channels % (r * r) == 0
    checks.require(ok, "pixel_shuffle", "upscale_factor^2 must divide the channels", RuntimeError, channels=channels, upscale_factor=r)
    x = input.reshape(*batch, channels // (r * r), r, r, height, width)
    return jnp.einsum("...ijhw->...hiwj", x).reshape(*batch, channels // (r * r), height * r, width * r)


@function
def pixel_unshuffle(input: Array, downscale_factor: int) -> Array:
    """Turns pixels into channels, the inverse of :func:`pixel_shuffle`.

    Shape: input (*, C, H r, W r), output (*, C r^2, H, W), r the factor.

    Raises:
        RuntimeError: the factor is not positive or does not divide height and width, or there are no channels and pixels.
    """
    _check_factor("pixel_unshuffle", "downscale_factor", downscale_factor, input)
    *batch, channels, height, width = input.shape
    r = downscale_factor
    ok = height % r == width % r == 0
    checks.require(ok, "pixel_unshuffle", "downscale_factor must divide height and width", RuntimeError, input=input, downscale_factor=r)
    x = input.reshape(*batch, channels, height // r, r, width // r, r)
    return jnp.einsum("...hiwj->...ijhw", x).reshape(*batch, channels * r * r, height // r, width // r)


@function
def channel_shuffle(input: Array, groups: int) -> Array:
    """Interleaves the groups of channels: of (g, C / g) channels it makes (C / g, g).

    Shape: input (N, C, *), output the same.

    Raises:
        RuntimeError: groups is not positive or does not divide C, or the input has fewer than three dimensions.
    """
    _check_factor("channel_shuffle", "groups", groups, input)
    n, channels, *space = input.shape
    checks.require(
        channels % groups == 0, "channel_shuffle", "groups must divide the channels", RuntimeError, channels=channels, groups=groups
    )
    return sampling.shuffled(groups, input.reshape(n, channels, math.prod(space))).reshape(input.shape)


@layer
class PixelShuffle(Layer):
    """Turns channels into pixels, for convolutions at a stride of 1 / upscale_factor.

    Shape: input (*, C r^2, H, W), output (*, C, H r, W r), r the factor.

    Args:
        upscale_factor: by how much height and width grow.

    Reference: Shi et al., Real-Time Single Image and Video Super-Resolution, 2016.
    """

    upscale_factor: int

    def compute(self, s: Any, input: Array) -> Array:
        return pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


@layer
class PixelUnshuffle(Layer):
    """Turns pixels into channels, the inverse of :class:`PixelShuffle`.

    Shape: input (*, C, H r, W r), output (*, C r^2, H, W), r the factor.

    Args:
        downscale_factor: by how much height and width shrink.
    """

    downscale_factor: int

    def compute(self, s: Any, input: Array) -> Array:
        return pixel_unshuffle(input, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"


@layer
class ChannelShuffle(Layer):
    """Interleaves the groups of channels, so that the next grouped convolution mixes them.

    Shape: input (N, C, *), output the same.

    Args:
        groups: the number of groups, which divides C.

    Reference: Zhang et al., ShuffleNet, 2017.
    """

    groups: int

    def compute(self, s: Any, input: Array) -> Array:
        return channel_shuffle(input, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
