"""Arrays that XLA:CPU is made to write to memory before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func

from .taps import count

Array = jax.Array

_stored = Primitive("stored")
# Smaller arrays are in the cache, and a loop for each costs more.
_LEAST = 1 << 16


def stored(x: Array, always: bool = False) -> Array:
    """``x``, a transposition or padding, which XLA:CPU would else compute again for each element of what reads it, without tiles.

    Or a product of matrices, ``always`` and not only a large one: XLA would else turn a transposition of it into others of its factors.
    """
    return _stored.bind(x, value=True, transposed=True) if (always or large(x)) and jnp.issubdtype(x.dtype, jnp.floating) else x


def value_stored(x: Array) -> Array:
    """``x``, stored; its cotangent is not."""
    return _stored.bind(x, value=True, transposed=False)


def cotangent_stored(x: Array) -> Array:
    """``x``, whose cotangent is stored."""
    return _stored.bind(x, value=False, transposed=True)


def large(x: Array) -> bool:
    """Whether storing ``x`` costs less than a loop that reads it as it is computed can."""
    return count(x.shape) >= _LEAST


def _lower(context: Any, x: ir.Value, *, value: bool, **_: Any) -> Sequence[ir.Value]:
    """A call of the identity that XLA may not inline: neither are loops fused across it, nor is anything copied or compiled for it."""
    if not value or not all(isinstance(size, int) for size in context.avals_in[0].shape):
        return [x]
    module = context.module_context
    with ir.InsertionPoint.at_block_begin(module.module.body):
        identity = func.FuncOp("stored", ir.FunctionType.get([x.type], [x.type]), visibility="private")
        with ir.InsertionPoint(identity.add_entry_block()):
            func.ReturnOp(list(identity.arguments))
    module.symbol_table.insert(identity)
    call = func.CallOp([x.type], ir.FlatSymbolRefAttr.get(identity.name.value), [x])
    call.operation.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get({"inlineable": ir.StringAttr.get("false")})
    return call.results


def _batch(arrays: Sequence[Array], dims: Sequence[Any], **which: bool) -> tuple[Array, Any]:
    return _stored.bind(*arrays, **which), dims[0]


def _transpose(g: Array, _: Any, *, value: bool, transposed: bool) -> list[Array]:
    return [_stored.bind(g, value=transposed, transposed=value)]


_stored.def_impl(jax.jit(lambda x, **_: x, static_argnames=("value", "transposed")))
_stored.def_abstract_eval(lambda aval, **_: aval)
mlir.register_lowering(_stored, _lower)
ad.deflinear2(_stored, _transpose)
batching.primitive_batchers[_stored] = _batch
