"""Parametrizations: parameters and buffers that are functions of others, as torch.nn.utils.parametrize.

``module.weight`` then gives ``parametrization(module.parametrizations.weight.original)``, computed whenever it is read,
so that it is right inside compiled and differentiated calls too; assigning to it calls ``right_inverse``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from ..core import checks
from ..core.function import as_array
from ..module.containers import ModuleDict, ModuleList
from ..module.module import Module
from ..module.parameter import Parameter, Variable

M = TypeVar("M", bound=Module)

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "transfer_parametrizations_and_params",
    "type_before_parametrizations",
]

_cache: ContextVar[dict[tuple[Module, str], tuple[Any, Any]] | None] = ContextVar("jnn_parametrization_cache", default=None)


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Compute each parametrized tensor once inside this context, and forget the values on leaving it.

    For a tensor that a forward pass uses often: a recurrent kernel, a shared weight.

    Differs from torch: a value computed while jax traces serves that trace only, so none leaks into another.
    """
    if _cache.get() is not None:
        yield
        return
    token = _cache.set({})
    try:
        yield
    finally:
        _cache.reset(token)


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, Variable, jax.ShapeDtypeStruct))


def _register(module: Module, name: str, value: Any) -> None:
    (module.register_parameter if isinstance(value, Parameter) else module.register_buffer)(name, value)


def _require_like(who: object, what: str, value: Any, like: Any, shape: bool = True) -> None:
    """Refuse a ``value`` that is no array, or not of the dtype and shape of ``like``."""
    checks.require(_is_array(value), who, f"{what} must be an array", ValueError, returned=type(value))
    rule = f"{what} must keep the dtype, unless unsafe=True"
    checks.require(value.dtype == like.dtype, who, rule, ValueError, before=like.dtype, after=value.dtype)
    if shape:
        rule = f"{what} must keep the shape, unless unsafe=True"
        checks.require(value.shape == like.shape, who, rule, ValueError, before=like.shape, after=value.shape)


class ParametrizationList(ModuleList):
    """The parametrizations of one tensor, in order, and what the first of them is a function of.

    That is ``original``, or ``original0``, ``original1``, ... where its ``right_inverse`` gives several.
    :func:`register_parametrization` makes it; it is ``module.parametrizations[name]``.

    Args:
        modules: the parametrizations.
        original: the parameter or buffer that is parametrized.
        unsafe: whether they may change its shape and dtype, which is then not checked.
    """

    def __init__(self, modules: Sequence[Module], original: Any, unsafe: bool = False) -> None:
        checks.require(len(modules) > 0, self, "there must be at least one parametrization", ValueError)
        super().__init__(modules)
        self.unsafe = unsafe
        before = as_array(original)
        new: Any = before
        for module in reversed(self):
            with contextlib.suppress(NotImplementedError):
                new = module.right_inverse(new) if hasattr(module, "right_inverse") else new
        self.is_tensor = _is_array(new)
        new = [new] if self.is_tensor else new
        given = [type(value) for value in new] if isinstance(new, Sequence) else type(new)
        ok = isinstance(new, Sequence) and all(map(_is_array, new))
        checks.require(ok, self, "right_inverse must return an array or a sequence of arrays", ValueError, returned=given)
        self.ntensors = len(new)
        if self.is_tensor:
            _require_like(self, "what right_inverse returns", new[0], before, shape=False)
            # The same Parameter as before, so that whoever holds it, an optimizer, trains the right one.
            original.data = new[0]
            _register(self, "original", original)
        else:
            trained = isinstance(original, Parameter)
            for i, value in enumerate(new):
                _register(self, f"original{i}", Parameter(value, original.requires_grad) if trained else as_array(value))
        if not unsafe:
            try:
                _require_like(self, "a parametrization", self(), before)
            except Exception:
                original.data = before
                raise

    def _originals(self) -> list[Any]:
        return [self.original] if self.is_tensor else [getattr(self, f"original{i}") for i in range(self.ntensors)]

    def right_inverse(self, value: Any) -> None:
        """Set the originals so that the parametrized tensor is ``value``, as far as the ``right_inverse`` methods make it so."""
        value = as_array(value)
        for module in reversed(self):
            checks.require(hasattr(module, "right_inverse"), module, "to be assigned to, it must define right_inverse", RuntimeError)
            value = module.right_inverse(value)
        values, originals = [value] if self.is_tensor else value, self._originals()
        given = len(values) if isinstance(values, Sequence) else type(values)
        rule = f"right_inverse must return {self.ntensors} arrays, as it did"
        checks.require(given == self.ntensors, self, rule, ValueError, returned=given)
        for new, old in zip(values, originals, strict=True):
            _require_like(self, "what right_inverse returns", new, old, shape=False)
        for new, old in zip(values, originals, strict=True):
            old.data = new

    def forward(self) -> Any:
        """The parametrized tensor."""
        first, *rest = self
        value = first(*map(as_array, self._originals()))
        for module in rest:
            value = module(value)
        return value


def _property(name: str) -> property:
    def get(self: Any) -> Any:
        compute, cache = self.parametrizations[name], _cache.get()
        if cache is None:
            return compute()
        state, value = cache.get((self, name), (None, None))
        now = get_opaque_trace_state(convention="jnn")
        if state != now:
            value = compute()
            cache[self, name] = now, value
        return value

    def put(self: Any, value: Any) -> None:
        self.parametrizations[name].right_inverse(value)

    return property(get, put)


def _deepcopy(self: Module, memo: dict[int, Any]) -> Any:
    new = memo[id(self)] = type(self).__new__(type(self))
    vars(new).update(copy.deepcopy(Module.__getstate__(self), memo))
    return new


def _refuse_pickling(self: Any, protocol: Any) -> Any:
    checks.fail(self, "a parametrized module can be saved through state_dict() only", RuntimeError)


@functools.cache
def _parametrized(cls: type, names: tuple[str, ...]) -> Any:
    """The subclass of ``cls`` whose attributes ``names`` are parametrized. One for all modules, so that equal ones compile once."""
    body: dict[str, Any] = {name: _property(name) for name in names}
    body |= {"__module__": cls.__module__, "__reduce_ex__": _refuse_pickling}
    if not hasattr(cls, "__deepcopy__"):
        body["__deepcopy__"] = _deepcopy
    made: Any = type(f"Parametrized{cls.__name__}", (cls,), body)
    return made


def register_parametrization(module: M, tensor_name: str, parametrization: Module, *, unsafe: bool = False) -> M:
    """Make a parameter or buffer of a module a function of another; again, a function of that function.

    ``parametrization(original)`` is what reading ``module.<tensor_name>`` then gives, and ``original`` what is trained, under
    the name ``parametrizations.<tensor_name>.original``. A ``right_inverse`` method on it gives the original for a value:
    for today's, on registration (without one the original is today's value), and for what is assigned later. It may return
    several arrays, which become ``original0``, ``original1``, ... and are the arguments of the first parametrization.

    Args:
        module: the module that holds the tensor; it becomes one of a subclass of its class.
        tensor_name: the name of the parameter or buffer.
        parametrization: a module; it takes the mode, training or not, that ``module`` has.
        unsafe: whether it may change shape and dtype, which is then not checked.

    Raises:
        ValueError: there is no such tensor, or the parametrization gives no array or changes shape or dtype.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        chain = module.parametrizations[tensor_name]
        if not unsafe:
            _check_chained(parametrization, as_array(getattr(module, tensor_name)))
        chain.append(parametrization)
        chain.unsafe |= unsafe
        return module
    held = module._parameters.get(tensor_name, module._buffers.get(tensor_name))
    checks.require(held is not None, module, "no parameter, buffer or parametrized tensor is called so", ValueError, name=tensor_name)
    chain = ParametrizationList([parametrization], held, unsafe)
    delattr(module, tensor_name)
    before = [*module.parametrizations] if is_parametrized(module) else []
    module.__class__ = _parametrized(type_before_parametrizations(module), (*before, tensor_name))
    if not before:
        module.parametrizations = ModuleDict()
    module.parametrizations[tensor_name] = chain
    return module


def _check_chained(parametrization: Any, before: Any) -> None:
    """Refuse a parametrization that does not keep the space of ``before``, or whose ``right_inverse`` does not."""
    after = parametrization(before)
    _require_like(parametrization, "a parametrization", after, before)
    if hasattr(parametrization, "right_inverse"):
        with contextlib.suppress(NotImplementedError):
            _require_like(parametrization, "what right_inverse returns", parametrization.right_inverse(after), before)


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether a tensor of a module, or any when no name is given, is parametrized."""
    named = getattr(module, "parametrizations", None)
    if not isinstance(named, ModuleDict):
        return False
    return len(named) > 0 if tensor_name is None else tensor_name in named


def remove_parametrizations(module: M, tensor_name: str, leave_parametrized: bool = True) -> M:
    """Make a parametrized tensor a plain parameter or buffer again.

    Args:
        module: the module that holds it; when it was the last, the module gets back its class.
        tensor_name: its name.
        leave_parametrized: whether it keeps the value it has, or gets that of ``original``.

    Raises:
        ValueError: it is not parametrized, or it has several originals, none of which can be left.
    """
    checks.require(is_parametrized(module, tensor_name), module, "it is not parametrized", ValueError, name=tensor_name)
    chain = module.parametrizations[tensor_name]
    rule = "with several originals, leave_parametrized must be True"
    checks.require(leave_parametrized or chain.is_tensor, module, rule, ValueError, name=tensor_name)
    originals = chain._originals()
    restored = originals[0]
    if leave_parametrized:
        value = as_array(getattr(module, tensor_name))
        if chain.is_tensor:
            restored.data = value
        else:
            restored = Parameter(value) if any(o.requires_grad for o in originals) else value
    left = tuple(n for n in module.parametrizations if n != tensor_name)
    cls: Any = type_before_parametrizations(module)
    module.__class__ = _parametrized(cls, left) if left else cls
    if left:
        del module.parametrizations[tensor_name]
    else:
        del module.parametrizations
    _register(module, tensor_name, restored)
    return module


def type_before_parametrizations(module: Module) -> type:
    """The class that a module had before it was parametrized."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def transfer_parametrizations_and_params(from_module: Module, to_module: M, tensor_name: str | None = None) -> M:
    """Give a module the parametrizations of another, the same modules and originals.

    Args:
        from_module: where they come from; if it has none, nothing is done.
        to_module: where they go; a tensor that it lacks is added.
        tensor_name: which tensor's; all when None.
    """
    if not is_parametrized(from_module):
        return to_module
    for name in [*from_module.parametrizations] if tensor_name is None else [tensor_name]:
        if not hasattr(to_module, name):
            setattr(to_module, name, Parameter(getattr(from_module, name)))
        source = from_module.parametrizations[name]
        for parametrization in source:
            register_parametrization(to_module, name, parametrization)
        target = to_module.parametrizations[name]
        for key in (*source._parameters, *source._buffers):
            setattr(target, key, getattr(source, key))
    return to_module
