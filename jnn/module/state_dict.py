"""``state_dict`` and ``load_state_dict`` of a module tree."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from ..core import checks, host
from .conversion import Conversion
from .hooks import RemovableHandle, register
from .parameter import Variable
from .registry import Registry
from .uninitialized import UninitializedVariable, is_lazy

_EXTRA = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class StateDict(Conversion):
    """The part of Module that saves and loads."""

    _version: ClassVar[int] = 1
    _non_persistent_buffers_set: set[str]
    _state_dict_pre_hooks: Registry
    _state_dict_hooks: Registry
    _load_state_dict_pre_hooks: Registry
    _load_state_dict_post_hooks: Registry

    def get_extra_state(self) -> Any:
        """What else ``state_dict`` shall hold for this module; define it together with :meth:`set_extra_state`."""
        checks.fail(self, "define get_extra_state", RuntimeError)

    def set_extra_state(self, state: Any) -> None:
        """Take what :meth:`get_extra_state` gave."""
        checks.fail(self, "define set_extra_state", RuntimeError)

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Parameters and persistent buffers by dotted name, in torch's order; ``keep_vars`` gives the boxes, not arrays."""
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        metadata = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = metadata
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        for hook in self._state_dict_hooks.values():
            destination = hook(self, destination, prefix, metadata) or destination
        return destination

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, variable in self._persistent().items():
            destination[prefix + name] = variable if keep_vars else variable.detach()
        if type(self).get_extra_state is not StateDict.get_extra_state:
            destination[prefix + _EXTRA] = self.get_extra_state()

    def _persistent(self) -> dict[str, Variable]:
        """The module's own variables that belong in a state_dict, in its order."""
        own = itertools.chain(self._parameters.items(), self._buffers.items())
        return {name: v for name, v in own if v is not None and name not in self._non_persistent_buffers_set}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> IncompatibleKeys:
        """Load arrays by dotted name, cast to the parameters' dtypes unless ``assign``.

        Missing and unexpected keys (under ``strict``) and shape mismatches are reported together, in one RuntimeError,
        and then nothing has changed. Under ``strict=False`` the two lists of keys are returned.
        """
        checks.require(isinstance(state_dict, Mapping), self, "state_dict must be a mapping", TypeError, state_dict=type(state_dict))
        # A copy, which hooks and overrides may change.
        metadata, state = getattr(state_dict, "_metadata", {}), OrderedDict(state_dict)
        report, errors = IncompatibleKeys([], []), []
        before = {id(v): (v, type(v), v._value, v._shared) for m in self.modules() for v in m._persistent().values()}
        _load_tree(self, state, "", metadata, assign, report, errors)
        if strict and report.unexpected_keys:
            errors.insert(0, "Unexpected key(s) in state_dict: " + ", ".join(f'"{k}"' for k in report.unexpected_keys) + ". ")
        if strict and report.missing_keys:
            errors.insert(0, "Missing key(s) in state_dict: " + ", ".join(f'"{k}"' for k in report.missing_keys) + ". ")
        if errors:
            for variable, kind, value, shared in before.values():
                variable.__class__, variable._value, variable._shared = kind, value, shared
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(errors))
        return report

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        own, extra = self._persistent(), prefix + _EXTRA
        for name, variable in own.items():
            if prefix + name in state_dict:
                assign = local_metadata.get("assign_to_params_buffers", False)
                error_msgs += _load_variable(variable, prefix + name, state_dict[prefix + name], assign)
            elif strict:
                missing_keys.append(prefix + name)
        has_extra = type(self).set_extra_state is not StateDict.set_extra_state
        if has_extra and extra in state_dict:
            self.set_extra_state(state_dict[extra])
        elif strict and has_extra:
            missing_keys.append(extra)
        for key in state_dict if strict else ():
            name, *rest = key.removeprefix(prefix).split(".", 1)
            if key.startswith(prefix) and name not in (self._modules if rest else own) and not (has_extra and key == extra):
                unexpected_keys.append(key)

    # Hooks

    def register_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, prefix, keep_vars)`` before this module's state is saved."""
        return register(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, state_dict, prefix, local_metadata)`` after; it may change the dict and returns None."""

        def checked(module: Any, *args: Any) -> None:
            checks.require(hook(module, *args) is None, module, "a state_dict post-hook must return None", RuntimeError)

        return register(self._state_dict_hooks, checked)

    def _register_state_dict_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        return register(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)`` before loading."""
        return self._register_load_state_dict_pre_hook(hook, with_module=True)

    def _register_load_state_dict_pre_hook(self, hook: Callable[..., Any], with_module: bool = False) -> RemovableHandle:
        return register(self._load_state_dict_pre_hooks, _OfModule(hook, self) if with_module else hook)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, incompatible_keys)`` after this module and those below have loaded; it may change the lists."""
        return register(self._load_state_dict_post_hooks, hook)


class _OfModule:
    """A hook with its module as first argument; a class, so that copying the module copies the tie."""

    def __init__(self, hook: Callable[..., Any], module: Any) -> None:
        self.hook, self.module = hook, module

    def __call__(self, *args: Any) -> Any:
        return self.hook(self.module, *args)


def _load_tree(
    module: Any, state: Any, prefix: str, metadata: Mapping[str, Any], assign: bool, report: IncompatibleKeys, errors: list[str]
) -> None:
    local = {**metadata.get(prefix[:-1], {}), **({"assign_to_params_buffers": True} if assign else {})}
    module._load_from_state_dict(state, prefix, local, True, report.missing_keys, report.unexpected_keys, errors)
    for name, child in module._modules.items():
        if child is not None:
            inner = f"{prefix}{name}."
            part = OrderedDict((k, v) for k, v in state.items() if k.startswith(inner))
            _load_tree(child, part, inner, metadata, assign, report, errors)
    for hook in module._load_state_dict_post_hooks.values():
        checks.require(hook(module, report) is None, module, "a load_state_dict post-hook must return None", AssertionError)


def _load_variable(variable: Variable, key: str, value: Any, assign: bool) -> list[str]:
    """Load one variable; returns what is wrong."""
    if is_lazy(value):
        return [] if is_lazy(variable) else [f'While copying "{key}", expected an array but received {type(value).__name__}.']
    value = value._value if isinstance(value, Variable) else value
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float)):
        return [f'While copying "{key}", expected an array but received {type(value).__name__}.']
    if isinstance(variable, UninitializedVariable):
        variable.materialize(np.shape(value))
    if variable.shape == () and np.shape(value) == (1,):
        value = np.reshape(np.asarray(value), ())  # as torch before 0.4 saved scalars
    if np.shape(value) != variable.shape:
        return [f"size mismatch for {key}: shape {np.shape(value)} in the state_dict, {variable.shape} in the current model."]
    if isinstance(variable._value, jax.ShapeDtypeStruct) and not assign:
        return [f'While copying "{key}", the parameter is on the meta device; pass assign=True.']
    # A new array: one given by the caller may be changed or donated later.
    variable._value, variable._shared = host.copied(value, None if assign else variable.dtype), False
    return []
