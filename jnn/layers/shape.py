"""Layers that move elements about: flattening, pixel and channel shuffles."""

from __future__ import annotations

import math
from typing import Any

import jax

from ..core import checks
from ..core.spec import Layer, layer

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
