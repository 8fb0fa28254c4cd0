"""torch.func's way of calling modules with given arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .core import checks
from .module.bridge import functional_call as functional_call
from .module.module import Module
from .module.program import Batch

__all__ = ["checkpoint", "functional_call", "stack_module_state"]


def checkpoint(module: Module, *args: Any, policy: Callable[..., bool] | None = None, **kwargs: Any) -> Any:
    """Call a module and keep nothing of its inside for the backward pass, which computes it again (``jax.checkpoint``).

    For use inside a loss or a ``forward``. Buffers are written once, randomness is the same both times.

    Args:
        policy: which intermediate values to keep after all, one of ``jax.checkpoint_policies``.
    """
    checks.require(isinstance(module, Module), "checkpoint", "the first argument must be a Module", TypeError, module=type(module))
    registries = [m._buffers for m in module.modules()]
    batch = Batch((args, kwargs))

    def run(arrays: tuple[Any, ...]) -> tuple[Any, list[dict[str, Any]]]:
        before = [dict(registry) for registry in registries]
        args, kwargs = batch.rebuild(arrays)
        output = module(*args, **kwargs)
        written = [{n: v for n, v in r.items() if v is not b[n]} for r, b in zip(registries, before, strict=True)]
        _write(registries, before)
        return output, written

    output, written = jax.checkpoint(run, policy=policy)(batch.arrays)
    _write(registries, written)
    return output


def _write(registries: list[dict[str, Any]], values: list[dict[str, Any]]) -> None:
    for registry, new in zip(registries, values, strict=True):
        registry.update(new)


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(params, buffers)`` by dotted name, those of all models stacked in a new first dimension, for ``jax.vmap``.

    Args:
        models: modules of one class, all in the same mode.
    """
    checks.require(len(models) > 0, "stack_module_state", "models must not be empty", RuntimeError)
    same = len({type(m) for m in models}) == 1 and len({m.training for m in models}) == 1
    checks.require(
        same, "stack_module_state", "models must be of one class and in one mode", RuntimeError, models=[type(m).__name__ for m in models]
    )
    groups = [[dict(named(m)) for m in models] for named in (Module.named_parameters, Module.named_buffers)]
    return tuple({n: jnp.stack([jnp.asarray(v[n]) for v in group]) for n in group[0]} for group in groups)  # type: ignore[return-value]
