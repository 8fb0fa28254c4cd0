"""Functions linear in each of two arrays, with gradients of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .varying import alike

Array = jax.Array
Like = jax.ShapeDtypeStruct
Function = Callable[[Any, Array, Array], Array]
Gradient = Callable[[Any, Array, Array, Like], Array]


def bilinear(value: Function, by_left: Gradient, by_right: Gradient) -> Function:
    """``value(static, a, b)`` whose gradients for a cotangent ``g`` are ``by_left(static, g, b, a)`` and ``by_right(static, g, a, b)``.

    The last argument of a gradient is the shape and dtype of the array that it is by. Forward mode is ``value`` itself, of a
    tangent and the other array. Derivatives of the gradients come from JAX. Each function is compiled, so that equal calls in a
    program are traced once.
    """
    primitive = Primitive("bilinear")
    run = jax.jit(value, static_argnums=0)
    left, right = (jax.jit(gradient, static_argnums=(0, 3)) for gradient in (by_left, by_right))

    def bind(a: Array, b: Array, *, static: Any) -> Array:
        return run(static, a, b)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Array, int]:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        fronts = (x if d is None else batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True))
        return mapped(*(None if d is None else 0 for d in dims))(static, *fronts), 0

    @functools.cache
    def mapped(a_axis: int | None, b_axis: int | None) -> Function:
        """``value`` by sample, bilinear too."""

        def values(static: Any, a: Array, b: Array) -> Array:
            return jax.vmap(functools.partial(value, static), (a_axis, b_axis))(a, b)

        return bilinear(values, _by_sample(by_left, a_axis, b_axis), _by_sample(by_right, b_axis, a_axis))

    primitive.def_impl(bind)
    primitive.def_abstract_eval(lambda a, b, *, static: run.trace(static, a, b).jaxpr.out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(bind, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.defbilinear(
        primitive,
        lambda g, a, b, *, static: left(static, g, b, Like(a.aval.shape, a.aval.dtype)),
        lambda g, a, b, *, static: right(static, g, a, Like(b.aval.shape, b.aval.dtype)),
    )
    return lambda static, a, b: primitive.bind(*alike(a, b), static=static)


def _by_sample(gradient: Gradient, own: int | None, other: int | None) -> Gradient:
    """``gradient`` for samples along these axes; an array that all samples share has the sum of theirs."""

    def total(static: Any, g: Array, known: Array, like: Like) -> Array:
        one = like if own is None else Like(like.shape[1:], like.dtype)
        each = jax.vmap(lambda g, known: gradient(static, g, known, one), (0, other))(g, known)
        return each.sum(0) if own is None else each

    return total
