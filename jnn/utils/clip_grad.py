"""Limits on gradients: of Parameters, through their ``grad``, and of trees of arrays.

A name with an underscore takes Parameters and changes their ``grad``, as in torch; the same name without it takes a tree
of gradients, such as ``jnn.value_and_grad`` gives, and returns a new one. Only the latter work inside a trace.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Mapping
from types import GeneratorType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ..core import checks, dtypes
from ..layers.distance import vector_norm
from ..module.parameter import Variable

Array = jax.Array
Tree = TypeVar("Tree")


@functools.partial(jax.jit, static_argnames="norm_type")
def _total_norm(arrays: list[Array], norm_type: float) -> Array:
    norms = [vector_norm(jnp.ravel(a).astype(dtypes.accumulator(a.dtype)), norm_type, 0) for a in arrays]
    return vector_norm(jnp.stack(norms), norm_type, 0).astype(jnp.result_type(*(a.real.dtype for a in arrays)))


@jax.jit
def _scaled(tree: Any, max_norm: Any, total_norm: Array) -> Any:
    factor = jnp.minimum(max_norm / (total_norm + 1e-6), 1)
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), tree)


@jax.jit
def _limited(tree: Any, limit: Any) -> Any:
    return jax.tree.map(lambda g: jnp.clip(g, -limit, limit).astype(g.dtype), tree)


def get_total_norm(tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None) -> Array:
    """The norm of all elements of all arrays, as if they were one vector.

    Args:
        tensors: an array, an iterable of arrays, or any tree of them.
        norm_type: the p of the norm; ``"inf"`` or ``inf`` for the largest absolute value.
        error_if_nonfinite: whether to refuse a norm that is infinite or NaN; not inside a trace.
        foreach: accepted; changes nothing.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite``.
    """
    arrays = jax.tree.leaves([*tensors] if isinstance(tensors, Iterable) and not isinstance(tensors, (Mapping, Variable)) else tensors)
    if not arrays:
        return jnp.zeros((), jnp.float32)
    total = _total_norm([jnp.asarray(a) for a in arrays], float(norm_type))
    if error_if_nonfinite:
        known = not isinstance(total, Tracer)
        checks.require(known, "get_total_norm", "error_if_nonfinite needs known values, and these are traced", RuntimeError)
        rule = "the norm must be finite, unless error_if_nonfinite=False"
        checks.require(math.isfinite(total), "get_total_norm", rule, RuntimeError, norm=float(total), norm_type=norm_type)
    return total


def clip_grads_with_norm(grads: Tree, max_norm: float, total_norm: Array) -> Tree:
    """A tree of gradients times ``min(max_norm / (total_norm + 1e-6), 1)``."""
    return _scaled(grads, max_norm, total_norm)


def clip_grad_norm(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Any:
    """A tree of gradients with its norm limited to ``max_norm``, and the norm that it had: ``(grads, total_norm)``.

    Given Parameters it is torch's deprecated alias of :func:`clip_grad_norm_`.

    Args:
        parameters: the tree of gradients.
        max_norm: the largest norm.
        norm_type, error_if_nonfinite, foreach: as of :func:`get_total_norm`.
    """
    if isinstance(parameters, (Variable, GeneratorType)) or any(isinstance(p, Variable) for p in _members(parameters)):
        warnings.warn("clip_grad_norm: deprecated for parameters, use clip_grad_norm_", FutureWarning, stacklevel=2)
        return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    total = get_total_norm(parameters, norm_type, error_if_nonfinite, foreach)
    return _scaled(parameters, float(max_norm), total), total


def clip_grad_value(grads: Tree, clip_value: float) -> Tree:
    """A tree of gradients with every element limited to [-clip_value, clip_value]."""
    return _limited(grads, clip_value)


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Array:
    """Scale the ``grad`` of Parameters so that their norm is at most ``max_norm``; returns the norm that they had.

    Args:
        parameters: a Parameter or an iterable of them; those without a ``grad`` are passed over.
        max_norm: the largest norm.
        norm_type, error_if_nonfinite, foreach: as of :func:`get_total_norm`.
    """
    held = _with_grad("clip_grad_norm_", parameters)
    total = get_total_norm([p.grad for p in held], norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(held, max_norm, total, foreach)
    return total


def clip_grads_with_norm_(parameters: Any, max_norm: float, total_norm: Array, foreach: bool | None = None) -> None:
    """Scale the ``grad`` of Parameters by ``min(max_norm / (total_norm + 1e-6), 1)``."""
    held = _with_grad("clip_grads_with_norm_", parameters)
    _put(held, _scaled([p.grad for p in held], float(max_norm), total_norm))


def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Limit every element of the ``grad`` of Parameters to [-clip_value, clip_value]."""
    held = _with_grad("clip_grad_value_", parameters)
    _put(held, _limited([p.grad for p in held], float(clip_value)))


def _members(parameters: Any) -> Iterable[Any]:
    return parameters if isinstance(parameters, Iterable) and not isinstance(parameters, (Mapping, jax.Array)) else ()


def _with_grad(who: str, parameters: Any) -> list[Variable]:
    """The variables among ``parameters`` that have gradients; anything but variables is refused."""
    given = [parameters] if isinstance(parameters, Variable) else [*parameters]
    if not given and isinstance(parameters, GeneratorType):
        warnings.warn(f"{who}: parameters is an empty generator, nothing is clipped", UserWarning, stacklevel=3)
    for p in given:
        rule = f"parameters must be Parameters; for trees of gradients use {who[:-1]}"
        checks.require(isinstance(p, Variable), who, rule, TypeError, parameter=type(p))
    return [p for p in given if p.grad is not None]


def _put(held: list[Variable], grads: list[Array]) -> None:
    for p, grad in zip(held, grads, strict=True):
        p.grad = grad
