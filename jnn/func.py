"""torch.func's way of calling modules with given arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .core import checks
from .module.bridge import functional_call as functional_call
from .module.module import Module

__all__ = ["functional_call", "stack_module_state"]


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
