"""Sums that XLA:CPU is slow at: of what it computes alongside, and of several arrays, of which no two share a pass by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .foreign import foreign
from .taps import count

Array = jax.Array

# So few numbers are added one to another: XLA:CPU's sums over them take five times as long.
_FEW = 8
# Fewer numbers than these are not worth a call of the library.
_LEAST = 1 << 13


def sum_last(x: Array, axes: int) -> Array:
    """The sum over the last ``axes`` axes of ``x``."""
    large = axes and count(x.shape) >= _LEAST
    return (_sum_last if large else _sum_last_as_defined)(axes, x)[0]


def _sum_last_as_defined(axes: int, x: Array) -> tuple[Array]:
    return (jnp.sum(x, tuple(range(x.ndim - axes, x.ndim))),)


# XLA:CPU computes what is summed by one thread along with the sum and, where it chooses between numbers, without vectors.
_sum_last = foreign("jnn_sum", _sum_last_as_defined, lambda _: {})


def sums(arrays: Sequence[Array], axes: Sequence[int]) -> list[Array]:
    """``[x.sum(axes) for x in arrays]``, for arrays of one shape and dtype."""
    return _sums.bind(*arrays, axes=tuple(axes), shape=arrays[0].shape)


def repeats(arrays: Sequence[Array], axes: Sequence[int], shape: Sequence[int]) -> list[Array]:
    """Arrays without ``axes``, repeated along them to ``shape``: the transpose of :func:`sums`, and so summed in one pass by it."""
    return _repeats.bind(*arrays, axes=tuple(axes), shape=tuple(shape))


def _reduce(*arrays: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Sequence[Array]:
    if len(axes) == 1 and isinstance(shape[axes[0]], int) and 0 < shape[axes[0]] <= _FEW:
        return [functools.reduce(jnp.add, (lax.index_in_dim(x, i, axes[0], False) for i in range(shape[axes[0]]))) for x in arrays]
    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    return lax.reduce(arrays, zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), axes)


def _repeat(*arrays: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Sequence[Array]:
    return [lax.broadcast_in_dim(x, shape, [axis for axis in range(len(shape)) if axis not in axes]) for x in arrays]


def _linear(name: str, run: Callable[..., Sequence[Array]], type_of: Callable[..., Any]) -> Primitive:
    """A primitive that does the same to each of its arrays, whole or, with ``axes`` summed, of ``shape``."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(jax.jit(run, static_argnames=("axes", "shape")))
    primitive.def_abstract_eval(lambda *avals, **options: [type_of(aval, **options) for aval in avals])
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], **options: Any) -> tuple[list[Array], list[Array]]:
        return primitive.bind(*primals, **options), primitive.bind(*map(ad.instantiate_zeros, tangents), **options)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        front = [batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True)]
        return primitive.bind(*front, axes=tuple(axis + 1 for axis in axes), shape=(size, *shape)), [0] * len(front)

    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    return primitive


def _transposes(primitive: Primitive, other: Primitive) -> None:
    """Make ``other`` the transpose of ``primitive``."""
    ad.primitive_transposes[primitive] = lambda cts, *_, **options: other.bind(*map(ad.instantiate_zeros, cts), **options)


def _summed(aval: Any, *, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    return lax.reduce_sum_p.abstract_eval(aval, axes=axes, out_sharding=None)[0]


def _repeated(aval: Any, *, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    return lax.broadcast_in_dim_p.abstract_eval(aval, shape=shape, broadcast_dimensions=kept, sharding=None)[0]


# Sums are one pass after two transpositions too, because each is a primitive.
_sums, _repeats = _linear("sums", _reduce, _summed), _linear("repeats", _repeat, _repeated)
_transposes(_sums, _repeats)
_transposes(_repeats, _sums)
