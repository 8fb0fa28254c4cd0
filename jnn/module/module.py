"""``Module``: the stateful face. Parameters, buffers and submodules by attribute, as in torch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks, rng
from ..core.spec import Layer, find_device, format_tree
from . import hooks, state_dict
from .hooks import Hook, RemovableHandle
from .parameter import Buffer, Parameter, Variable, cast
from .registry import Registry, Version

# What a stateful twin takes from Module although its Layer, which comes first in the MRO, has it too.
_RESTORED = ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__getstate__", "apply", "_configured", "cached_parts")
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks")

# Modules that a compiled function calls although they are no argument of it, noted while it is traced.
live_calls: ContextVar[list[Module] | None] = ContextVar("jnn_live_calls", default=None)
global_forward_pre_hooks = Registry()
global_forward_hooks = Registry()


class Binding:
    """The run that a bound module tree belongs to; see ``structure.bind``."""

    __slots__ = ("path", "stream")

    def __init__(self, stream: rng.KeyStream, path: str) -> None:
        self.stream, self.path = stream, path


class Module:
    """Base class of all stateful layers and models, as ``torch.nn.Module``.

    Assign parameters, buffers and submodules as attributes and define ``forward``. The twin of a pure layer needs no
    ``forward``: its ``compute`` is called with the module as its own state. ``jnn.pure`` gives the pure pair of any module.

    Differs from torch: arrays are immutable, so ``state_dict`` is a snapshot and not a view; hooks run while a compiled
    call is traced, so that what they return holds in every step and what they do on the side happens once; attributes
    other than buffers that ``forward`` sets inside a compiled call are forgotten.
    """

    training: bool
    _twins: ClassVar[dict[type[Layer], type[Module]]] = {}
    _version: ClassVar[int] = 1
    _bound: Binding | None = None
    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]
    _forward_pre_hooks: Registry
    _forward_hooks: Registry
    _non_persistent_buffers_set: set[str]

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
        for name in _RESTORED:
            if name not in vars(cls):
                setattr(cls, name, vars(Module)[name])
        if specs[0].setup is not Layer.setup and not hasattr(cls, "reset_parameters"):
            cls.reset_parameters = Module._reset_parameters  # type: ignore[attr-defined]
        cls.__doc__ = cls.__doc__ or specs[0].__doc__
        Module._twins.setdefault(specs[0], cls)

    @classmethod
    def from_spec(cls, spec: Layer) -> Module:
        """The stateful twin of a pure layer, freshly initialised."""
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
        for name, value in layer.own_state(lambda: rng.next_key(self)).items():
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
        for registry in (self._parameters, self._buffers, self._modules):
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
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

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

    def get_submodule(self, target: str) -> Module:
        """The submodule at a dotted path; ``""`` is the module itself."""
        module: Any = self
        for name in target.split(".") if target else ():
            module = getattr(module, name, None)
            if not isinstance(module, Module):
                checks.fail(self, "no submodule there", AttributeError, target=target)
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._parameters.get(name)
        if found is None:
            checks.fail(self, "no parameter there", AttributeError, target=target)
        return found

    def get_buffer(self, target: str) -> Buffer:
        """The buffer at a dotted path."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._buffers.get(name)
        if found is None:
            checks.fail(self, "no buffer there", AttributeError, target=target)
        return found

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
            return self._run(args, kwargs)
        with rng.scope(bound.stream, bound.path), jax.named_scope(type(self).__name__):
            return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not (self._forward_pre_hooks or self._forward_hooks or global_forward_pre_hooks or global_forward_hooks):
            return self.forward(*args, **kwargs)
        pre = [*global_forward_pre_hooks.values(), *self._forward_pre_hooks.values()]
        post = [*global_forward_hooks.values(), *self._forward_hooks.values()]
        return hooks.call(self, args, kwargs, pre, post)

    def register_forward_pre_hook(self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Call ``hook(module, args)`` before ``forward``; what it returns replaces the arguments."""
        return hooks.register(self._forward_pre_hooks, Hook(hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after ``forward``; what it returns replaces the output."""
        return hooks.register(self._forward_hooks, Hook(hook, with_kwargs, always_call), prepend)

    # Traversal

    def named_modules(self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """Every module of the tree with its dotted name, itself first under ``prefix``."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Every module of the tree, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules by name, each once."""
        seen: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def _named(self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, variable in getattr(module, registry).items():
                if variable is None or id(variable) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(variable))
                yield (f"{path}.{name}" if path else name), variable

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """The parameters by dotted name, each once: a tied one under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Buffer]]:
        """The buffers by dotted name, each once."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Buffer]:
        """The buffers, each once."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every submodule and then on the module itself; returns self."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # Modes and conversion

    def train(self, mode: bool = True) -> Self:
        """Set training mode on the whole tree; returns self."""
        checks.require(isinstance(mode, bool), self, "mode must be a bool", ValueError, mode=mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode on the whole tree; returns self."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or freeze them; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = None if set_to_none else jnp.zeros_like(parameter.grad)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert parameters and buffers: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(array)``.

        ``dtype`` applies to floating point and complex values only; ``device`` is torch's string or a jax device or sharding.
        """
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        for accepted in ("non_blocking", "copy"):
            kwargs.pop(accepted, None)
        checks.require(not kwargs, self, "to() takes dtype, device, non_blocking and copy", TypeError, got=[*kwargs])
        for arg in args:
            if isinstance(arg, (jax.Array, np.ndarray, Variable)):
                dtype = arg.dtype
            elif isinstance(arg, str) and arg.partition(":")[0] in ("cpu", "cuda", "gpu", "tpu"):
                device = arg
            elif isinstance(arg, (jax.Device, jax.sharding.Sharding)):
                device = arg
            elif arg is not None and not isinstance(arg, bool):
                dtype = arg
        if dtype is not None:
            checks.require(jnp.issubdtype(dtype, np.inexact), self, "dtype must be floating point or complex", TypeError, dtype=dtype)
        device = None if device is None else find_device(self, device)
        for variable in {
            id(v): v for m in self.modules() for v in (*m._parameters.values(), *m._buffers.values()) if v is not None
        }.values():
            cast(variable, dtype, device)
        return self

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(dtype=jnp.float32)

    def double(self) -> Self:
        """Convert to float64, which needs JAX's x64 mode."""
        return self.to(dtype=np.float64)

    def half(self) -> Self:
        """Convert to float16."""
        return self.to(dtype=jnp.float16)

    def bfloat16(self) -> Self:
        """Convert to bfloat16."""
        return self.to(dtype=jnp.bfloat16)

    # State

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> OrderedDict[str, Any]:
        """Parameters and persistent buffers by dotted name, in torch's order; ``keep_vars`` gives the boxes, not arrays."""
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = {"version": self._version}
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        return destination

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        state_dict.save(self, destination, prefix, keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> state_dict.IncompatibleKeys:
        """Load arrays by dotted name, cast to the parameters' dtypes unless ``assign``.

        Missing and unexpected keys (under ``strict``) and shape mismatches are reported together, in one RuntimeError,
        and then nothing has changed. Under ``strict=False`` the two lists of keys are returned.
        """
        return load(self, state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        load_own(self, state_dict, prefix, local_metadata.get("assign_to_params_buffers", False), missing_keys, error_msgs)

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


load, load_own = state_dict.load, state_dict.load_own
