"""``state_dict`` and ``load_state_dict`` of a module tree."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from .parameter import Variable


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def persistent(module: Any) -> dict[str, Variable]:
    """A module's own variables that belong in a state_dict, in its order."""
    own = itertools.chain(module._parameters.items(), module._buffers.items())
    return {name: v for name, v in own if v is not None and name not in module._non_persistent_buffers_set}


def save(module: Any, destination: OrderedDict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Write a module's own state into ``destination``."""
    for name, variable in persistent(module).items():
        destination[prefix + name] = variable if keep_vars else variable.detach()


def load(module: Any, state: Mapping[str, Any], strict: bool, assign: bool) -> IncompatibleKeys:
    """Load ``state`` into the tree of ``module``; when anything is refused, all is named and nothing has changed."""
    checks.require(isinstance(state, Mapping), module, "state_dict must be a mapping", TypeError, state_dict=type(state))
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    before = [(v, v._value) for v in {id(v): v for m in module.modules() for v in persistent(m).values()}.values()]
    known: set[str] = set()

    def visit(child: Any, prefix: str) -> None:
        metadata = getattr(state, "_metadata", {}).get(prefix[:-1], {})
        child._load_from_state_dict(state, prefix, {**metadata, "assign_to_params_buffers": assign}, strict, missing, unexpected, errors)
        known.update(prefix + name for name in persistent(child))
        for name, grandchild in child._modules.items():
            if grandchild is not None:
                visit(grandchild, f"{prefix}{name}.")

    visit(module, "")
    unexpected += [key for key in state if key not in known and key not in unexpected]
    if strict:
        if unexpected:
            errors.insert(0, "Unexpected key(s) in state_dict: " + ", ".join(f'"{k}"' for k in unexpected) + ". ")
        if missing:
            errors.insert(0, "Missing key(s) in state_dict: " + ", ".join(f'"{k}"' for k in missing) + ". ")
    if errors:
        for variable, value in before:
            variable._value = value
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t" + "\n\t".join(errors))
    return IncompatibleKeys(missing, unexpected)


def load_own(module: Any, state: Mapping[str, Any], prefix: str, assign: bool, missing: list[str], errors: list[str]) -> None:
    """Load a module's own variables, adding what cannot be to ``missing`` and ``errors``."""
    for name, variable in persistent(module).items():
        key = prefix + name
        if key not in state:
            missing.append(key)
            continue
        value = state[key]
        value = value._value if isinstance(value, Variable) else value
        if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float)):
            errors.append(f'While copying "{key}", expected an array but received {type(value).__name__}.')
        elif np.shape(value) != variable.shape:
            errors.append(f"size mismatch for {key}: shape {np.shape(value)} in the state_dict, {variable.shape} in the current model.")
        elif isinstance(variable._value, jax.ShapeDtypeStruct) and not assign:
            errors.append(f'While copying "{key}", the parameter is on the meta device; pass assign=True.')
        else:
            # A new array: one given by the caller may be changed or donated later.
            variable._value = jnp.array(value, dtype=None if assign else variable.dtype)
            variable._shared = False
