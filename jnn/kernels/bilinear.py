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
Function = Callable[..., Array]
Gradient = Callable[..., Array]


def bilinear(value: Function, by_left: Gradient, by_right: Gradient) -> Function:
    """``value(static, a, b, *known)`` whose gradients are ``by_left(static, g, b, a, *known)`` and ``by_right(static, g, a, b, *known)``.

    ``g`` is the cotangent; the argument after the other array is the shape and dtype of the array that a gradient is by, and ``known``
    are arrays of integers.
    Forward mode is ``value`` itself, of a tangent and the other array. Derivatives of the gradients come from JAX. Each function is
    compiled, so that equal calls in a program are traced once.
    """
    primitive = Primitive("bilinear")
    run = jax.jit(value, static_argnums=0)
    left, right = (jax.jit(gradient, static_argnums=(0, 3)) for gradient in (by_left, by_right))

    def bind(*arrays: Array, static: Any) -> Array:
        return run(static, *arrays)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Array, int]:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        fronts = (x if d is None else batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True))
        return mapped(*(None if d is None else 0 for d in dims))(static, *fronts), 0

    @functools.cache
    def mapped(*axes: int | None) -> Function:
        """``value`` by sample, bilinear too."""

        def values(static: Any, *arrays: Array) -> Array:
            return jax.vmap(functools.partial(value, static), axes)(*arrays)

        a, b, *known = axes
        return bilinear(values, _by_sample(by_left, a, b, known), _by_sample(by_right, b, a, known))

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], *, static: Any) -> tuple[Array, Any]:
        terms = [
            primitive.bind(*primals[:i], tangents[i], *primals[i + 1 :], static=static) for i in (0, 1) if type(tangents[i]) is not ad.Zero
        ]
        return primitive.bind(*primals, static=static), functools.reduce(ad.add_tangents, terms)

    def transpose(g: Any, a: Any, b: Any, *known: Array, static: Any) -> list[Any]:
        gradient, unknown, other = (left, a, b) if ad.is_undefined_primal(a) else (right, b, a)
        like = Like(unknown.aval.shape, unknown.aval.dtype)
        slope = ad.Zero(unknown.aval) if type(g) is ad.Zero else gradient(static, g, other, like, *known)
        return [slope if x is unknown else None for x in (a, b, *known)]

    primitive.def_impl(bind)
    primitive.def_abstract_eval(lambda *avals, static: run.trace(static, *avals).jaxpr.out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(bind, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    return lambda static, *arrays: primitive.bind(*alike(*arrays), static=static)


def _by_sample(gradient: Gradient, own: int | None, other: int | None, axes: Sequence[int | None]) -> Gradient:
    """``gradient`` for samples along these axes; an array that all samples share has the sum of theirs."""

    def total(static: Any, g: Array, factor: Array, like: Like, *known: Array) -> Array:
        one = like if own is None else Like(like.shape[1:], like.dtype)
        each = jax.vmap(lambda g, factor, *known: gradient(static, g, factor, one, *known), (0, other, *axes))(g, factor, *known)
        return each.sum(0) if own is None else each

    return total
