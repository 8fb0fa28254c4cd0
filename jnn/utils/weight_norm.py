"""Weight normalisation as a hook: ``weight`` in terms of ``weight_g`` and ``weight_v``.

Reference: Salimans and Kingma, Weight normalization, 2016.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core import checks, dtypes
from ..layers.distance import vector_norm
from ..module.module import Module
from ..module.parameter import Parameter

Array = jax.Array
M = TypeVar("M", bound=Module)


def norm_except_dim(v: Any, dim: int | None) -> Array:
    """The Euclidean norms of the slices of ``v`` along ``dim``, with sizes 1 elsewhere; of all of it for None and -1."""
    v = jnp.asarray(v)
    wide = v.astype(dtypes.accumulator(v.dtype))
    if dim in (None, -1):
        return vector_norm(wide, 2, None).astype(v.dtype)
    kept = checks.dim("weight_norm", dim, v.ndim)
    axes = tuple(axis for axis in range(v.ndim) if axis != kept)
    return vector_norm(wide, 2, axes, keepdims=True).astype(v.dtype)


def normalised(v: Any, g: Any, dim: int | None) -> Array:
    """``g v / |v|``, the norm taken over all dimensions but ``dim``."""
    v, g = jnp.asarray(v), jnp.asarray(g)
    wide = v.astype(dtypes.accumulator(v.dtype))
    factor = g.astype(wide.dtype) / norm_except_dim(wide, dim)
    return (wide * jnp.reshape(factor, factor.shape or (1,) * v.ndim)).astype(v.dtype)


def find_hook(module: Module, kind: type, name: str) -> Any:
    """The number and the forward pre-hook of a kind that acts on ``name``, or None."""
    found = ((n, hook.call) for n, hook in module._forward_pre_hooks.items())
    return next(((n, fn) for n, fn in found if isinstance(fn, kind) and fn.name == name), None)


def attach(module: Module, fn: Any) -> None:
    """Let ``fn.compute_weight(module)`` be what reading ``fn.name`` gives, and call ``fn`` before every forward."""
    module._computed[fn.name] = fn.compute_weight
    module.register_forward_pre_hook(fn)


def detach(module: Module, kind: type, name: str) -> Any:
    """Undo :func:`attach`; returns the hook and the weight."""
    found = find_hook(module, kind, name)
    if found is None:
        checks.fail(module, f"no {kind.__name__} acts on it", ValueError, name=name)
    number, fn = found
    weight = fn.compute_weight(module)
    del module._forward_pre_hooks[number]
    del module._computed[name]
    return fn, weight


@dataclasses.dataclass(frozen=True)
class WeightNorm:
    """The hook that :func:`weight_norm` registers."""

    name: str
    dim: int

    def compute_weight(self, module: Module) -> Array:
        """The weight for the present magnitude and direction."""
        return normalised(getattr(module, f"{self.name}_v"), getattr(module, f"{self.name}_g"), self.dim)

    def __call__(self, module: Module, inputs: Any) -> None:
        # An array that was assigned to the name is forgotten, as torch overwrites it here.
        vars(module).pop(self.name, None)


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Replace a parameter by its magnitude and its direction, ``w = g v / |v|``; deprecated for parametrizations.weight_norm.

    Args:
        module: the module that holds it.
        name: the parameter's name; ``{name}_g`` and ``{name}_v`` are the new parameters.
        dim: the dimension that keeps its own norms; None for one norm of the whole.

    Raises:
        RuntimeError: the parameter has a weight normalisation.

    Differs from torch: the weight is computed whenever it is read, so it is never out of date.
    """
    warnings.warn("weight_norm: deprecated, use jnn.utils.parametrizations.weight_norm", FutureWarning, stacklevel=2)
    checks.require(find_hook(module, WeightNorm, name) is None, module, "it has a weight_norm already", RuntimeError, name=name)
    fn = WeightNorm(name, -1 if dim is None else dim)
    weight = getattr(module, name)
    value = jnp.asarray(weight)
    magnitude = norm_except_dim(value, fn.dim)
    del module._parameters[name]
    module.register_parameter(f"{name}_g", Parameter(magnitude))
    module.register_parameter(f"{name}_v", Parameter(value))
    attach(module, fn)
    return module


def remove_weight_norm(module: M, name: str = "weight") -> M:
    """Make a weight-normalised parameter one again, with the value it has.

    Raises:
        ValueError: it has no weight normalisation.
    """
    _, weight = detach(module, WeightNorm, name)
    for part in ("g", "v"):
        del module._parameters[f"{name}_{part}"]
    setattr(module, name, Parameter(weight))
    return module
