"""Functions linear in each of two arrays, with gradients of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array
Like = jax.ShapeDtypeStruct
Function = Callable[[Any, Array, Array], Array]
ByLeft = Callable[[Any, Array, Like, Array], Array]
ByRight = Callable[[Any, Array, Array, Like], Array]


def bilinear(value: Function, by_left: ByLeft, by_right: ByRight) -> Function:
    """``value(static, a, b)`` whose gradients for a cotangent ``g`` are ``by_left(static, g, a, b)`` and ``by_right(static, g, a, b)``.

    Of the array that a gradient is by, it is given the shape and dtype only. Forward mode is ``value`` itself, of a tangent and
    the other array. Derivatives of the gradients come from JAX. Each function is compiled, so that equal calls in a program are
    traced once.
    """
    primitive = Primitive("bilinear")
    run = jax.jit(value, static_argnums=0)
    left, right = jax.jit(by_left, static_argnums=(0, 2)), jax.jit(by_right, static_argnums=(0, 3))

    def bind(a: Array, b: Array, *, static: Any) -> Array:
        return run(static, a, b)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Array, int]:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        fronts = (x if d is None else batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True))
        return mapped(*(None if d is None else 0 for d in dims))(static, *fronts), 0

    @functools.cache
    def mapped(a_axis: int | None, b_axis: int | None) -> Function:
        """``value`` by sample, bilinear too: an array that all samples share has the sum of its gradients by each."""

        def one(like: Like) -> Like:
            return Like(like.shape[1:], like.dtype)

        def values(static: Any, a: Array, b: Array) -> Array:
            return jax.vmap(functools.partial(value, static), (a_axis, b_axis))(a, b)

        def by_lefts(static: Any, g: Array, a: Like, b: Array) -> Array:
            like = a if a_axis is None else one(a)
            each = jax.vmap(lambda g, b: by_left(static, g, like, b), (0, b_axis))(g, b)
            return each.sum(0) if a_axis is None else each

        def by_rights(static: Any, g: Array, a: Array, b: Like) -> Array:
            like = b if b_axis is None else one(b)
            each = jax.vmap(lambda g, a: by_right(static, g, a, like), (0, a_axis))(g, a)
            return each.sum(0) if b_axis is None else each

        return bilinear(values, by_lefts, by_rights)

    primitive.def_impl(bind)
    primitive.def_abstract_eval(lambda a, b, *, static: run.trace(static, a, b).jaxpr.out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(bind, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.defbilinear(
        primitive,
        lambda g, a, b, *, static: left(static, g, Like(a.aval.shape, a.aval.dtype), b),
        lambda g, a, b, *, static: right(static, g, a, Like(b.aval.shape, b.aval.dtype)),
    )
    return lambda static, a, b: primitive.bind(*_alike(a, b), static=static)


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Both varying along the same axes: under ``shard_map`` an array's type says along which."""
    return (a * _one(b), b * _one(a)) if jax.sharding.get_abstract_mesh().manual_axes else (a, b)


def _one(x: Array) -> Array:
    """1, of the type of ``x``."""
    first = lax.squeeze(lax.slice(x, [0] * x.ndim, [1] * x.ndim), range(x.ndim))
    one = jnp.ones((), x.dtype)
    return jnp.where(first == first, one, one)
