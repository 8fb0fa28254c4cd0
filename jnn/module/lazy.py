"""Lazy modules: their parameters get their shapes from the first call, or from a ``state_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from ..core import checks, rng
from .module import Module
from .registry import Version
from .uninitialized import UninitializedBuffer as UninitializedBuffer
from .uninitialized import UninitializedParameter as UninitializedParameter
from .uninitialized import is_lazy as is_lazy


class LazyModuleMixin:
    """Mixin for a Module, to come first among its bases, that gives its parameters their shapes at its first call.

    The constructor makes an ``UninitializedParameter`` or ``UninitializedBuffer`` of what it cannot know;
    ``initialize_parameters``, called with the arguments of the first call, makes them real. The module then becomes an
    instance of ``cls_to_become``, if that is set. ``jax.eval_shape(module.eval(), x)`` is a first call that computes nothing.

    Differs from torch: the built-in lazy layers know their sizes once a ``state_dict`` is loaded, and a network of them
    can then be split and compiled; torch's learn them from the next call.
    """

    cls_to_become: ClassVar[type | None] = None
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _inferred = False

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Give every parameter and buffer its shape; define it in subclasses."""
        checks.fail(self, "define initialize_parameters", NotImplementedError)

    def has_uninitialized_params(self) -> bool:
        """Whether a parameter or buffer of this module has no shape yet."""
        return any(is_lazy(v) for v in (*self._parameters.values(), *self._buffers.values()))

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._inferred:
            self.initialize_parameters(*args, **kwargs)
            whole = not self.has_uninitialized_params()
            checks.require(whole, self, "initialize_parameters must give every parameter and buffer its shape", RuntimeError)
            if self.cls_to_become is None:
                vars(self)["_inferred"] = True
            else:
                object.__setattr__(self, "__class__", self.cls_to_become)
            Version.bump()
        return Module.__call__(self, *args, **kwargs)

    def _save_to_state_dict(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        Module._save_to_state_dict(self, destination, prefix, True)
        for name in () if keep_vars else self._persistent():
            variable = destination[prefix + name]
            destination[prefix + name] = variable if is_lazy(variable) else variable.detach()


class LazyLayer(LazyModuleMixin):
    """Base of the twins of the lazy layers, between the pure layer and the module class that each becomes."""

    missing: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "cls_to_become" not in vars(cls):
            cls.cls_to_become = next(c for c in cls.__mro__ if issubclass(c, Module) and not issubclass(c, LazyModuleMixin))

    def _configured(self: Any) -> None:
        Module._configured(self)
        for registry, kind in ((self._parameters, UninitializedParameter), (self._buffers, UninitializedBuffer)):
            for name, variable in registry.items():
                # A scalar, as the count of batches, has nothing to wait for.
                if variable is not None and variable.ndim:
                    registry[name] = kind(device=self.device, dtype=variable.dtype)

    def initialize_parameters(self: Any, input: Any, *args: Any, **kwargs: Any) -> None:
        """Take the missing size from the input, and draw what has no values yet from its initial distribution."""
        if not self.has_uninitialized_params() and getattr(self, self.missing):
            return
        vars(self)[self.missing] = self.infer(input)
        self.validate()
        own = {**self._parameters, **self._buffers}
        lazy = {name: variable for name, variable in own.items() if is_lazy(variable)}
        if lazy:
            with jax.ensure_compile_time_eval():
                state = self.own_state(lambda: rng.default_generator.draw(self))
                for name, variable in lazy.items():
                    variable._become(state[name])

    def reset_parameters(self: Any) -> None:
        """Draw the parameters and buffers anew, if their shapes are known."""
        if not self.has_uninitialized_params():
            super().reset_parameters()  # type: ignore[misc]

    def _load_from_state_dict(self: Any, state_dict: Mapping[str, Any], *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, *rest)  # type: ignore[misc]
        if not self.has_uninitialized_params():
            vars(self)[self.missing] = self.held(self)
