"""Sampling of images and volumes at given points, and grids of such points."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..kernels import grid as kernel

Array = jax.Array


def _aligned(who: str, align_corners: bool | None) -> bool:
    if align_corners is None:
        warnings.warn(f"{who}: align_corners is False unless given", UserWarning, stacklevel=4)
    return bool(align_corners)


@function
def grid_sample(input: Array, grid: Array, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None) -> Array:
    """Samples the input at the points of ``grid``: ``y[n, c, h, w] = input[n, c]`` at ``grid[n, h, w]``.

    A point is (x, y) or (x, y, z), x along the last dimension of the input; -1 and 1 are the outer borders of the first and the
    last element, or their centres with ``align_corners``.

    Shape: input (N, C, H, W) and grid (N, H', W', 2), output (N, C, H', W'); or input (N, C, D, H, W) and grid
        (N, D', H', W', 3), output (N, C, D', H', W').

    Args:
        mode: "bilinear" (trilinear for volumes), "nearest" or, for images, "bicubic".
        padding_mode: what stands outside the input: "zeros", the nearest element ("border") or the mirrored input ("reflection").
        align_corners: see above; None is False, with a warning.

    Raises:
        ValueError: mode or padding_mode is unknown.
        RuntimeError: shapes or dtypes do not fit.
    """
    who = "grid_sample"
    checks.choice(who, "mode", mode, ("bilinear", "nearest", "bicubic"))
    checks.choice(who, "padding_mode", padding_mode, ("zeros", "border", "reflection"))
    aligned = _aligned(who, align_corners)
    _check_shapes(who, input, grid, mode)
    dtype = dtypes.accumulator(input.dtype)
    y = kernel.grid_sample(kernel.Form(mode, padding_mode, aligned), input.astype(dtype), grid.astype(dtype))
    return y.astype(input.dtype)


def _check_shapes(who: str, input: Array, grid: Array, mode: str) -> None:
    shapes = {"input.shape": input.shape, "grid.shape": grid.shape}
    checks.floating(who, "input", input)
    checks.same_dtype(who, input=input, grid=grid)
    checks.rank(who, input, (4, 5))
    checks.require(grid.ndim == input.ndim, who, "input and grid must have the same number of dimensions", RuntimeError, **shapes)
    checks.require(grid.shape[0] == input.shape[0], who, "input and grid must have the same batch size", RuntimeError, **shapes)
    ok = grid.shape[-1] == input.ndim - 2
    checks.require(ok, who, "the last dimension of grid must be the number of spatial dimensions", RuntimeError, **shapes)
    checks.require(0 not in input.shape[2:], who, "the input must have elements in space", RuntimeError, **shapes)
    checks.require(mode != "bicubic" or input.ndim == 4, who, "mode 'bicubic' is for images only", RuntimeError, **shapes)


@function
def affine_grid(theta: Array, size: Sequence[int], align_corners: bool | None = None) -> Array:
    """The points of a regular grid over [-1, 1], mapped by affine matrices, for :func:`grid_sample`.

    Shape: theta (N, 2, 3) and size (N, C, H, W), output (N, H, W, 2); or theta (N, 3, 4) and size (N, C, D, H, W), output
        (N, D, H, W, 3).

    Args:
        theta: one matrix per sample, in the order (x, y) or (x, y, z), the last column a translation.
        size: the shape of the output of ``grid_sample``.
        align_corners: whether -1 and 1 are the centres of the corner elements, and not the outer borders; None is False, with a warning.

    Raises:
        ValueError: theta is not floating point or does not have the shape that goes with size, or size is not positive.
        NotImplementedError: size does not have 4 or 5 entries.
    """
    who = "affine_grid"
    aligned = _aligned(who, align_corners)
    checks.require(jnp.issubdtype(theta.dtype, jnp.floating), who, "theta must be floating point", theta=theta)
    checks.require(len(size) in (4, 5), who, "size must have 4 or 5 entries", NotImplementedError, size=size)
    space, nd = size[2:], len(size) - 2
    checks.require(theta.ndim == 3 and theta.shape[1:] == (nd, nd + 1), who, f"theta must be (N, {nd}, {nd + 1})", theta=theta, size=size)
    checks.require(min(size) > 0, who, "size must be positive", size=size)
    checks.require(theta.shape[0] == size[0], who, "theta and size must have the same batch size", RuntimeError, theta=theta, size=size)
    matrix = theta.astype(dtypes.accumulator(theta.dtype)).reshape(-1, *(1,) * nd, nd, nd + 1)
    points = jnp.zeros((), matrix.dtype)
    for axis, n in reversed([*enumerate(space)]):
        line = _line(n, aligned, matrix.dtype).reshape(*(1,) * (axis + 1), n, *(1,) * (nd - axis))
        points = points + line * matrix[..., nd - 1 - axis]
    return (points + matrix[..., nd]).astype(theta.dtype)


def _line(n: int, aligned: bool, dtype: np.dtype) -> np.ndarray:
    """``n`` points from -1 to 1, or half a step inside, with torch's roundings, which decide where those between two elements fall."""
    number, i = np.dtype(dtype).type, np.arange(n)
    step = float(number(2) / number(max(n - 1, 1)))
    line = np.where(i < n // 2, step * i - 1, 1 - step * (n - 1 - i)).astype(dtype) * number(n > 1)
    return line if aligned else line * number(n - 1) / number(n)
