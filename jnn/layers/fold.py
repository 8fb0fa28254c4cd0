"""Sliding blocks of an image as columns, and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels.taps import out_sizes, taps
from ..kernels.varying import transposed

Array = jax.Array
Size = int | Sequence[int]


def _geometry(who: str, kernel_size: Size, dilation: Size, padding: Size, stride: Size) -> tuple[tuple[int, ...], ...]:
    named = {"kernel_size": (kernel_size, 1), "dilation": (dilation, 1), "padding": (padding, 0), "stride": (stride, 1)}
    pairs = {name: checks.ntuple(who, name, value, 2) for name, (value, _) in named.items()}
    for name, (_, least) in named.items():
        checks.require(min(pairs[name]) >= least, who, f"{name} must be at least {least}", RuntimeError, **{name: pairs[name]})
    return tuple(pairs.values())


def _blocks(who: str, image: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]):
    """How many blocks fit, down and across."""
    sizes = out_sizes(image, kernel, stride, [(p, p) for p in padding], dilation)
    checks.require(
        all(n >= 1 for n in sizes), who, "the dilated kernel must fit into the padded image", RuntimeError, image=image, kernel_size=kernel
    )
    return sizes


def _columns(
    x: Array, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int], sizes: Sequence[int]
) -> Array:
    """(N, C, H, W) to (N, C, prod(kernel), *sizes)."""
    x = jnp.pad(x, [(0, 0)] * 2 + [(p, p) for p in padding])
    if tuple(stride) == tuple(kernel) and max(dilation) == 1:  # the blocks lie side by side
        (down, across), (height, width) = sizes, kernel
        x = x[:, :, : down * height, : across * width].reshape(*x.shape[:2], down, height, across, width)
        return jnp.transpose(x, (0, 1, 3, 5, 2, 4)).reshape(*x.shape[:2], height * width, down, across)
    return jnp.stack(list(taps(x, kernel, stride, dilation, sizes)), axis=2)


@function
def unfold(input: Array, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1) -> Array:
    """The sliding blocks of an image, each as a column.

    Shape: input (N, C, H, W) or (C, H, W), output (N, C * K_h * K_w, L) or (C * K_h * K_w, L); L counts the blocks row by row:
        L = prod_d floor((size_d + 2 padding_d - dilation_d (K_d - 1) - 1) / stride_d + 1).

    Args:
        kernel_size: (K_h, K_w), or one int for both.
        dilation: elements between neighbouring elements of a block.
        padding: zeros on both sides of the image.
        stride: elements between neighbouring blocks.

    Raises:
        RuntimeError: an input of another rank or an empty one, a block larger than the padded image, an argument out of range.
    """
    kernel, dilation, padding, stride = _geometry("unfold", kernel_size, dilation, padding, stride)
    checks.rank("unfold", input, (3, 4))
    checks.require(0 not in input.shape[-3:], "unfold", "only the batch may be empty", RuntimeError, **{"input.shape": input.shape})
    sizes = _blocks("unfold", input.shape[-2:], kernel, dilation, padding, stride)
    x = input.reshape(math.prod(input.shape[:-3]), *input.shape[-3:])
    y = _columns(x, kernel, dilation, padding, stride, sizes)
    return y.reshape(*input.shape[:-3], input.shape[-3] * math.prod(kernel), math.prod(sizes))


@function
def fold(input: Array, output_size: Size, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1) -> Array:
    """The image whose elements are the sums of what sliding blocks hold for them: the transpose of :func:`unfold`.

    Shape: input (N, C * K_h * K_w, L) or (C * K_h * K_w, L), output (N, C, H, W) or (C, H, W).

    Args:
        output_size: (H, W), or one int for both; with the other arguments it must make L blocks.
        kernel_size: (K_h, K_w), or one int for both.
        dilation: elements between neighbouring elements of a block.
        padding: elements cut off on both sides of the image.
        stride: elements between neighbouring blocks.

    Raises:
        RuntimeError: an input of another rank or an empty one, another number of blocks, an argument out of range.
    """
    kernel, dilation, padding, stride = _geometry("fold", kernel_size, dilation, padding, stride)
    image = checks.ntuple("fold", "output_size", output_size, 2)
    checks.rank("fold", input, (2, 3))
    checks.floating("fold", "input", input)
    shape = {"input.shape": input.shape}
    checks.require(0 not in input.shape[-2:], "fold", "only the batch may be empty", RuntimeError, **shape)
    channels, rest = divmod(input.shape[-2], math.prod(kernel))
    checks.require(rest == 0, "fold", "the size of a block must divide the columns' length", RuntimeError, kernel_size=kernel, **shape)
    sizes = _blocks("fold", image, kernel, dilation, padding, stride)
    checks.require(math.prod(sizes) == input.shape[-1], "fold", f"{math.prod(sizes)} blocks fit into output_size", RuntimeError, **shape)
    batch, dtype = input.shape[:-2], dtypes.accumulator(input.dtype)
    columns = functools.partial(_columns, kernel=kernel, dilation=dilation, padding=padding, stride=stride, sizes=sizes)
    unfolded = jax.ShapeDtypeStruct((math.prod(batch), channels, *image), dtype)
    blocks = input.reshape(math.prod(batch), channels, math.prod(kernel), *sizes).astype(dtype)
    return transposed(columns, unfolded, blocks).reshape(*batch, channels, *image).astype(input.dtype)


@layer
class Unfold(Layer):
    """Takes the sliding blocks of an image out, each as a column.

    Shape: input (N, C, H, W) or (C, H, W), output (N, C * K_h * K_w, L) or (C * K_h * K_w, L), with
        L = prod_d floor((size_d + 2 padding_d - dilation_d (K_d - 1) - 1) / stride_d + 1) blocks, row by row.

    Args:
        kernel_size: (K_h, K_w), or one int for both.
        dilation: elements between neighbouring elements of a block.
        padding: zeros on both sides of the image.
        stride: elements between neighbouring blocks.

    Raises:
        RuntimeError: an argument out of range; at the call, an input of another rank, or too small for a block.
    """

    kernel_size: Size
    dilation: Size = 1
    padding: Size = 0
    stride: Size = 1

    def validate(self) -> None:
        _geometry("Unfold", self.kernel_size, self.dilation, self.padding, self.stride)

    def compute(self, s: Any, input: Array) -> Array:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding}, stride={self.stride}"


@layer
class Fold(Layer):
    """Puts blocks back into an image, summed where they overlap: the transpose of :class:`Unfold`.

    Shape: input (N, C * K_h * K_w, L) or (C * K_h * K_w, L), output (N, C, H, W) or (C, H, W).

    Args:
        output_size: (H, W), or one int for both; with the other arguments it must make L blocks.
        kernel_size: (K_h, K_w), or one int for both.
        dilation: elements between neighbouring elements of a block.
        padding: elements cut off on both sides of the image.
        stride: elements between neighbouring blocks.

    Raises:
        RuntimeError: an argument out of range; at the call, an input of another rank or number of blocks.
    """

    output_size: Size
    kernel_size: Size
    dilation: Size = 1
    padding: Size = 0
    stride: Size = 1

    def validate(self) -> None:
        checks.ntuple(self, "output_size", self.output_size, 2)
        _geometry("Fold", self.kernel_size, self.dilation, self.padding, self.stride)

    def compute(self, s: Any, input: Array) -> Array:
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        sizes = f"output_size={self.output_size}, kernel_size={self.kernel_size}"
        return f"{sizes}, dilation={self.dilation}, padding={self.padding}, stride={self.stride}"
