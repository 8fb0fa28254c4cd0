"""Functions linear in one array, or in each of several, with gradients of one's own; and such a function with an offset."""

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


def multilinear(value: Function, *gradients: Gradient, by_sample: Callable[[Any], Any] | None = None) -> Function:
    """``value(static, *arrays, *known)``, linear in each of as many arrays as there are gradients.

    The gradient by one of them is ``gradient(static, g, *others, like, *known)``: ``g`` is the cotangent, ``others`` are the other arrays,
    ``like`` is the shape and dtype of this one, and ``known`` are arrays of integers.
    Forward mode is ``value`` itself, of a tangent and the other arrays. Derivatives of the gradients come from JAX. Each function is
    compiled, so that equal calls in a program are traced once. ``by_sample(static)`` is what to call ``value`` with for samples along a
    first axis of all arrays, where that is known; else each function is mapped.
    """
    primitive, count = _compiled("multilinear", value), len(gradients)
    compiled = [jax.jit(gradient, static_argnums=(0, 1 + count)) for gradient in gradients]

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Array, int]:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        fronts = [x if d is None else batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True)]
        if by_sample and None not in dims:
            return primitive.bind(*fronts, static=by_sample(static)), 0
        return mapped(*(None if d is None else 0 for d in dims))(static, *fronts), 0

    @functools.cache
    def mapped(*axes: int | None) -> Function:
        """``value`` by sample, as linear."""

        def values(static: Any, *arrays: Array) -> Array:
            return jax.vmap(functools.partial(value, static), axes)(*arrays)

        return multilinear(values, *(_by_sample(gradient, i, count, axes) for i, gradient in enumerate(gradients)))

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], *, static: Any) -> tuple[Array, Any]:
        terms = [
            primitive.bind(*primals[:i], tangents[i], *primals[i + 1 :], static=static)
            for i in range(count)
            if type(tangents[i]) is not ad.Zero
        ]
        return primitive.bind(*primals, static=static), functools.reduce(ad.add_tangents, terms)

    def transpose(g: Any, *arrays: Any, static: Any) -> list[Any]:
        own = next(i for i, x in enumerate(arrays) if ad.is_undefined_primal(x))
        aval = arrays[own].aval
        rest = (*arrays[:own], *arrays[own + 1 : count], Like(aval.shape, aval.dtype), *arrays[count:])
        slope = ad.Zero(aval) if type(g) is ad.Zero else compiled[own](static, g, *rest)
        return [slope if i == own else None for i in range(len(arrays))]

    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    return lambda static, *arrays: primitive.bind(*alike(*arrays), static=static)


def affine(value: Function, product: Function, spread: Callable[[Array, Sequence[int]], Array]) -> Function:
    """``value(static, *arrays, offset)``, which is ``product(static, *arrays)`` and the offset's ``spread(offset, shape)`` in one.

    The product is linear in each of the arrays, and the offset's spread in it. Derivatives and samples are those of the two.
    """
    primitive = _compiled("affine", value)

    def sum_of(static: Any, *arrays: Array) -> Array:
        y = product(static, *arrays[:-1])
        return y + spread(arrays[-1], y.shape)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Array, int]:
        return jax.vmap(functools.partial(sum_of, static), tuple(dims))(*arrays), 0

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], *, static: Any) -> tuple[Array, Any]:
        y, (*factors, _) = primitive.bind(*primals, static=static), primals
        moved = [(i, t) for i, t in enumerate(tangents[:-1]) if type(t) is not ad.Zero]
        terms = [product(static, *factors[:i], t, *factors[i + 1 :]) for i, t in moved]
        if type(tangents[-1]) is not ad.Zero:
            terms.append(spread(tangents[-1], y.shape))
        return y, functools.reduce(ad.add_tangents, terms)

    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return lambda static, *arrays: primitive.bind(*alike(*arrays), static=static)


def _compiled(name: str, value: Function) -> Primitive:
    """A primitive that is ``value(static, *arrays)``, traced once for equal calls."""
    primitive = Primitive(name)
    run = jax.jit(value, static_argnums=0)

    def bind(*arrays: Array, static: Any) -> Array:
        return run(static, *arrays)

    primitive.def_impl(bind)
    primitive.def_abstract_eval(lambda *avals, static: run.trace(static, *avals).jaxpr.out_avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(bind, multiple_results=False))
    return primitive


def _by_sample(gradient: Gradient, own: int, count: int, axes: tuple[int | None, ...]) -> Gradient:
    """The gradient by the ``own``-th of ``count`` arrays for samples along these axes; if they share the array, the sum of theirs."""
    shared, others = axes[own] is None, axes[:own] + axes[own + 1 :]

    def total(static: Any, g: Array, *rest: Any) -> Array:
        factors, like, known = rest[: count - 1], rest[count - 1], rest[count:]
        one = like if shared else Like(like.shape[1:], like.dtype)

        def of_sample(g: Array, *arrays: Array) -> Array:
            return gradient(static, g, *arrays[: count - 1], one, *arrays[count - 1 :])

        each = jax.vmap(of_sample, (0, *others))(g, *factors, *known)
        return each.sum(0) if shared else each

    return total
