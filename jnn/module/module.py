"""``Module``: the stateful face. Parameters, buffers and submodules by attribute, as in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks, rng
from ..core.spec import Layer, format_tree
from . import hooks
from .hooks import Hook, RemovableHandle
from .parameter import Buffer, Parameter, Variable
from .registry import Registry, Version
from .state_dict import StateDict

# What a stateful twin takes from Module although its Layer, which comes first in the MRO, has it too.
_RESTORED = ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__getstate__", "apply", "_configured", "cached_parts")
_REGISTRIES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_computed",
)

# Modules that a compiled function calls although they are no argument of it, noted while it is traced.
live_calls: ContextVar[list[Module] | None] = ContextVar("jnn_live_calls", default=None)


class Binding:
    """The run that a bound module tree belongs to; see ``structure.bind``."""

    __slots__ = ("path", "stream")

    def __init__(self, stream: rng.KeyStream, path: str) -> None:
        self.stream, self.path = stream, path


class Module(StateDict):
    """Base class of all stateful layers and models, as ``torch.nn.Module``.

    Assign parameters, buffers and submodules as attributes and define ``forward``. The twin of a pure layer needs no
    ``forward``: its ``compute`` is called with the module as its own state. ``jnn.pure`` gives the pure pair of any module.

    Differs from torch: arrays are immutable, so ``state_dict`` is a snapshot and not a view; hooks run while a compiled
    call is traced, so that what they return holds in every step and what they do on the side happens once; attributes
    other than buffers that ``forward`` sets inside a compiled call are forgotten.
    """

    training: bool
    _twins: ClassVar[dict[type[Layer], type[Module]]] = {}
    _bound: Binding | None = None
    _forward_pre_hooks: Registry
    _forward_hooks: Registry
    _backward_pre_hooks: Registry
    _backward_hooks: Registry
    _computed: Registry  # attributes that others give when they are read, by functions of the module

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = object.__new__(cls)
        self.__dict__.update({name: Registry() for name in _REGISTRIES}, training=True, _non_persistent_buffers_set=set())
        return self

    def __init__(self) -> None:
        pass

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        specs = [b for b in cls.__bases__ if issubclass(b, Layer) and not issubclass(b, Module)]
        if not specs:
            return
        stateful = [c for c in cls.__mro__[1:] if issubclass(c, Module) or not issubclass(c, Layer)]
        for name in _RESTORED:
            if name not in vars(cls):
                setattr(cls, name, next(vars(c)[name] for c in stateful if name in vars(c)))
        if specs[0].setup is not Layer.setup and not hasattr(cls, "reset_parameters"):
            cls.reset_parameters = Module._reset_parameters  # type: ignore[attr-defined]
        cls.__doc__ = cls.__doc__ or specs[0].__doc__
        Module._twins.setdefault(specs[0], cls)

    @classmethod
    def from_spec(cls, spec: Layer) -> Module:
        """The stateful twin of a pure layer, freshly initialised; a module as it is."""
        if isinstance(spec, Module):
            return spec
        twin = cls._twins.get(type(spec))
        if twin is None:
            checks.fail(cls, "this layer has no stateful twin", TypeError, layer=type(spec))
        return twin._from_spec(spec)

    @classmethod
    def _from_spec(cls, spec: Layer) -> Module:
        self = cls.__new__(cls)
        vars(self).update(spec.__getstate__())
        self._configured()
        return self

    def _configured(self) -> None:
        layer: Any = self
        # Constructing a module inside a trace makes constants of its parameters, as at any other time.
        with jax.ensure_compile_time_eval():
            state = layer.own_state(lambda: rng.default_generator.draw(self))
        for name, value in state.items():
            if name in layer._buffer_names:
                self.register_buffer(name, value, persistent=name not in layer._transient_names)
            else:
                self.register_parameter(name, None if value is None else Parameter(value, layer.trainable(name)))
        for name, part in layer.parts().items():
            self.register_module(name, Module.from_spec(part))

    def _reset_parameters(self) -> None:
        """Draw the layer's own parameters and buffers anew from their initial distributions."""
        layer: Any = self
        for name, value in layer.setup(rng.next_key(self)).items():
            if value is not None:
                getattr(self, name).copy_(value)

    @property
    def cached_parts(self) -> Mapping[str, Module]:
        """The submodules by name."""
        return self._modules

    # Attributes

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        for registry in ("_parameters", "_buffers", "_modules"):
            found = state.get(registry, ())
            if name in found:
                return found[name]
        if name in state.get("_computed", ()):
            return state["_computed"][name](self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self._forget(name, self._parameters)
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._forget(name, self._modules)
            self._modules[name] = value
        elif isinstance(value, Buffer):
            self._forget(name, self._buffers)
            self.register_buffer(name, value, persistent=value.persistent)
        elif name in self._buffers:
            self._write_buffer(name, value)
        elif name in self._parameters or name in self._modules:
            registry, kind = (self._parameters, "a Parameter") if name in self._parameters else (self._modules, "a Module")
            checks.require(value is None, self, f"{name} can only be set to {kind} or None", TypeError, **{name: type(value)})
            registry[name] = None
        else:
            if name not in self.__dict__ or self.__dict__[name] is not value:
                Version.bump()
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._buffers, self._modules, self._computed):
            if name in registry:
                del registry[name]
                self._non_persistent_buffers_set.discard(name)
                return
        Version.bump()
        object.__delattr__(self, name)

    def _forget(self, name: str, place: Mapping[str, Any]) -> None:
        """Drop whatever else is called ``name`` before it is put into ``place``, where it keeps its position."""
        for holder in (self.__dict__, self._parameters, self._buffers, self._modules):
            if holder is not place and name in holder:
                del holder[name]
        self._non_persistent_buffers_set.discard(name)

    def _write_buffer(self, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, (jax.Array, np.ndarray, Variable)):
            checks.fail(self, f"buffer {name} can only be set to an array, a Buffer or None", TypeError, **{name: type(value)})
        held = self._buffers[name]
        if self._bound is not None:
            self._buffers[name] = None if value is None else jnp.asarray(value)
        elif value is None or held is None:
            self._buffers[name] = None if value is None else Buffer(value)
        elif isinstance(value, Tracer):
            checks.fail(
                self,
                f"buffer {name} of a live module cannot be written inside a jax trace; run the model by jnn.pure, "
                "jnn.value_and_grad or jnn.train_step, or call eval()",
                RuntimeError,
            )
        else:
            held._value, held._shared = jnp.asarray(value), True

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules, *self._computed})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_structure", "_bound")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        for name, value in self.__getstate__().items():
            new.__dict__[name] = copy.copy(value) if name in (*_REGISTRIES, "_non_persistent_buffers_set") else value
        return new

    # Registration

    def _require_free(self, kind: str, name: Any, registry: Mapping[str, Any]) -> None:
        checks.require(isinstance(name, str), self, f"the name of a {kind} must be a string", TypeError, name=name)
        checks.require("." not in name, self, f"the name of a {kind} must not contain a dot", KeyError, name=name)
        checks.require(name != "", self, f"the name of a {kind} must not be empty", KeyError)
        checks.require(
            name in registry or not hasattr(self, name), self, f"the name of a {kind} must not be that of an attribute", KeyError, name=name
        )

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under ``name``; ``None`` reserves the name."""
        self._require_free("parameter", name, self._parameters)
        checks.require(
            param is None or isinstance(param, Parameter), self, f"{name} must be a Parameter or None", TypeError, **{name: type(param)}
        )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Add a buffer under ``name``; one that is not persistent is left out of ``state_dict``."""
        self._require_free("buffer", name, self._buffers)
        if tensor is not None and not isinstance(tensor, (jax.Array, np.ndarray, Variable, jax.ShapeDtypeStruct)):
            checks.fail(self, f"buffer {name} must be an array or None", TypeError, **{name: type(tensor)})
        self._buffers[name] = tensor if tensor is None or isinstance(tensor, Buffer) else Buffer(tensor, persistent=persistent)
        (self._non_persistent_buffers_set.discard if persistent else self._non_persistent_buffers_set.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under ``name``; ``None`` reserves the name."""
        self._require_free("submodule", name, self._modules)
        checks.require(
            module is None or isinstance(module, Module), self, f"{name} must be a Module or None", TypeError, **{name: type(module)}
        )
        self._modules[name] = module

    register_module = add_module

    # Calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call computes; define it in subclasses."""
        compute = getattr(self, "compute", None)
        if compute is None:
            checks.fail(self, "define forward", NotImplementedError)
        return compute(self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bound
        if bound is None:
            seen = live_calls.get()
            if seen is not None:
                seen.append(self)
            compiled = self.__dict__.get("_compiled_call")
            return self._run(args, kwargs) if compiled is None else compiled(self, args, kwargs)
        with rng.scope(bound.stream, bound.path), jax.named_scope(type(self).__name__):
            return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = hooks.Hooks(self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks)
        if own or hooks.everywhere:
            return hooks.call(self, args, kwargs, own)
        return self.forward(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Make every call from now on one compiled program; torch's options are accepted and mean nothing here."""
        from .program import call_compiled  # which knows modules

        self.__dict__["_compiled_call"] = call_compiled

    # Training over several devices, which jnn.parallel defines

    def _placement(self, who: str) -> Any:
        """The ``jnn.parallel.Placement`` of the module's training calls; None means one device."""
        return None

    def _accumulated(self) -> None:
        """Called when ``jnn.backward`` has added to the gradients."""

    def register_forward_pre_hook(self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Call ``hook(module, args)`` before ``forward``; what it returns replaces the arguments."""
        return hooks.register(self._forward_pre_hooks, Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after ``forward``; what it returns replaces the output."""
        return hooks.register(self._forward_hooks, Hook(hook, with_kwargs, always_call), prepend)

    def register_full_backward_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` before the gradients pass back through a call; what it returns replaces them."""
        return hooks.register(self._backward_pre_hooks, Hook(hook), prepend)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` once they have; what it returns replaces the gradients of the inputs.

        ``grad_input`` has an entry for each positional argument, None where none is due.

        Differs from torch: gradients are traced in a compiled step, where the hook runs once, while it is traced; a module
        with backward hooks is differentiated in reverse mode only.
        """
        return hooks.register(self._backward_hooks, Hook(hook), prepend)

    register_backward_hook = register_full_backward_hook

    # Printing

    def extra_repr(self) -> str:
        """What stands between the parentheses of ``repr``."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return format_tree(self._get_name(), self.extra_repr(), {name: repr(module) for name, module in self._modules.items()})

    __eq__ = object.__eq__
    __hash__ = object.__hash__
