"""Functions that are calls of jnn's library on a CPU, and elsewhere what they are defined as.

Where a program runs is known when it is lowered, so each is a primitive with two lowerings. The definition is what the library must
compute; it is also what is compiled for other platforms, for float types that the library has not, for programs that XLA
partitions over devices or that are exported, and under ``vmap``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from . import library
from .platform import by_library
from .varying import alike

Array = jax.Array
Arrays = tuple[Array, ...]
# Of what is static and arrays, the outputs.
Definition = Callable[..., Arrays]
_FLOATS = ("float32", "float64")


def foreign(target: str, definition: Definition, attributes: Callable[[Any], dict[str, Any]]) -> Definition:
    """``definition(static, *arrays)``, a tuple of arrays, as a call of the library's ``target``.

    Args:
        attributes: of ``static``, what the call is given besides arrays: numpy integers, floats and arrays of them.
    """
    primitive = _primitive(target, definition)
    # Under the primitive's own lowering: the definition, traced once for equal calls.
    run = jax.jit(definition, static_argnums=0)
    call = jax.ffi.ffi_lowering(target)

    def lower(context: Any, *operands: Any, static: Any) -> Any:
        if not library.registered(target) or not _whole(context):
            return mlir.lower_fun(lambda *arrays: run(static, *arrays), multiple_results=True)(context, *operands)
        return call(context, *operands, **attributes(static))

    mlir.register_lowering(primitive, lower, platform="cpu")

    def bind(static: Any, *arrays: Array) -> Arrays:
        if not takes(*arrays):
            return definition(static, *arrays)
        return tuple(primitive.bind(*alike(*arrays), static=static))

    return bind


def differentiable(
    definition: Definition,
    forward: Callable[..., tuple[Arrays, Arrays]],
    backward: Callable[..., Sequence[Array | None]],
    value: Definition | None = None,
) -> Definition:
    """``definition(static, *arrays)`` with reverse mode by ``backward``; forward mode and what comes after is by the definition.

    Args:
        forward: ``(static, *arrays) -> (outputs, residuals)``.
        backward: ``(static, cotangents, residuals, arrays, wanted)``: the gradients by those of ``arrays`` that are floats; ``wanted`` says
            of each whether it is asked for, and what others are is of no account. Is itself differentiated as if it were the
            gradient of the definition.
        value: ``(static, *arrays) -> outputs``, where nothing is differentiated; else ``forward`` computes them.
    """

    def tangents_of(*given: Array, static: Any, smooth: tuple[int, ...], count: int) -> Arrays:
        known, moved = given[:count], given[len(given) - len(smooth) :]

        def of(*moving: Array) -> Arrays:
            arrays = list(known)
            for i, x in zip(smooth, moving, strict=True):
                arrays[i] = x
            return definition(static, *arrays)

        return jax.jvp(of, tuple(known[i] for i in smooth), moved)[1]

    tangent = _primitive("tangent", lambda static, *arrays: tangents_of(*arrays, **dict(static)))

    def transpose(cotangents: Sequence[Any], *arrays: Any, static: Any) -> list[Any]:
        options = dict(static)
        rest = len(arrays) - len(options["smooth"])
        known, residuals = arrays[: options["count"]], arrays[options["count"] : rest]
        wanted = tuple(ad.is_undefined_primal(x) for x in arrays[rest:])
        slopes = backward(options["static"], tuple(map(ad.instantiate_zeros, cotangents)), residuals, known, wanted)
        return [None] * rest + [slope if want else None for want, slope in zip(wanted, slopes, strict=True)]

    ad.primitive_transposes[tangent] = transpose

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def run(static: Any, *arrays: Array) -> Any:
        return forward(static, *arrays)[0] if value is None else value(static, *arrays)

    @run.defjvp
    def jvp(static: Any, primals: Arrays, moved: Arrays) -> Any:
        outputs, residuals = forward(static, *primals)
        smooth = tuple(i for i, x in enumerate(primals) if jnp.issubdtype(x.dtype, jnp.inexact))
        options = (("static", static), ("smooth", smooth), ("count", len(primals)))
        return outputs, tuple(tangent.bind(*alike(*primals, *residuals, *(moved[i] for i in smooth)), static=options))

    def bind(static: Any, *arrays: Array) -> Arrays:
        if not takes(*arrays):
            return definition(static, *arrays)
        return run(static, *arrays)

    return bind


def takes(*arrays: Array) -> bool:
    """Whether the library is called and takes these: they have elements and sizes that are numbers, and some are floats, of its types."""
    floats = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    known = all(isinstance(n, int) and n > 0 for x in arrays for n in x.shape)
    return by_library() and known and bool(floats) and all(x.dtype.name in _FLOATS for x in floats)


def gradient(definition: Definition) -> Callable[..., Arrays]:
    """What ``backward`` of :func:`differentiable` must compute, ``(static, cotangents, residuals, arrays)``, from the definition."""

    def slopes(static: Any, cotangents: Arrays, residuals: Arrays, arrays: Arrays) -> Arrays:
        return jax.vjp(functools.partial(definition, static), *arrays)[1](cotangents)

    return slopes


def by_arrays(
    target: str, definition: Definition, attributes: Callable[[Any], dict[str, Any]], value: Definition | None = None
) -> Definition:
    """``definition``, of one output, as a call of ``target``; its gradients, of cotangent and arrays, are one of ``target_backward``.

    ``value`` is that of :func:`differentiable`.
    """

    def slopes(static: Any, g: Array, *arrays: Array) -> Arrays:
        return gradient(definition)(static, (g,), (), arrays)

    forward, backward = foreign(target, definition, attributes), foreign(f"{target}_backward", slopes, attributes)
    return differentiable(
        definition,
        lambda static, *arrays: (forward(static, *arrays), ()),
        lambda static, gs, _, arrays, wanted: backward(static, *gs, *arrays),
        value,
    )


def _primitive(name: str, definition: Definition) -> Primitive:
    """A primitive of several results that is ``definition(static, *arrays)`` and is mapped and differentiated as such."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    run = jax.jit(definition, static_argnums=0)

    def as_defined(*arrays: Array, static: Any) -> Arrays:
        return run(static, *arrays)

    def batch(arrays: Sequence[Array], dims: Sequence[Any], *, static: Any) -> tuple[Arrays, Sequence[int]]:
        size = next(x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None)
        fronts = [x if d is None else batching.bdim_at_front(x, d, size) for x, d in zip(arrays, dims, strict=True)]
        outputs = jax.vmap(functools.partial(definition, static), [None if d is None else 0 for d in dims])(*fronts)
        return outputs, [0] * len(outputs)

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], *, static: Any) -> tuple[Arrays, Arrays]:
        moved = tuple(map(ad.instantiate_zeros, tangents))
        return primitive.bind(*primals, static=static), jax.jvp(functools.partial(definition, static), tuple(primals), moved)[1]

    compiled = jax.jit(lambda *arrays, static: primitive.bind(*arrays, static=static), static_argnames="static")

    def run_now(*arrays: Array, static: Any) -> Arrays:
        # Where functions are not compiled, this one would call itself.
        with jax.disable_jit(False):
            return compiled(*arrays, static=static)

    primitive.def_impl(run_now)
    primitive.def_abstract_eval(lambda *avals, static: run.trace(static, *avals).jaxpr.out_avals)
    mlir.register_lowering(primitive, mlir.lower_fun(as_defined, multiple_results=True))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return primitive


def _whole(context: Any) -> bool:
    """Whether what is lowered runs on one device as it stands, or on each of several."""
    module = context.module_context
    devices = getattr(module.axis_context, "num_devices", None)
    manual = getattr(module.axis_context, "manual_axes", None)
    alone = devices == 1 if manual is None else manual == frozenset(module.axis_context.mesh.axis_names)
    return alone and not module.lowering_parameters.for_export
