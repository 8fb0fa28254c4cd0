"""What a compiled call may assume of a module, and how traced arrays are put in its place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import jax
import numpy as np

from ..core import checks, rng, tree
from .backward import gate, replaced
from .hooks import everywhere
from .module import Binding, Module
from .parameter import Parameter, Variable
from .registry import Registry, Version
from .uninitialized import is_lazy

_UNSEEN = ("_structure", "_bound", "_compiled_call", "_parameters", "_buffers", "_modules")


class Same:
    """Equal only to a wrapper of the very same object, which it keeps alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Fingerprint:
    """Everything but array values that the trace of a module depends on; its hash is taken once."""

    __slots__ = ("_hash", "content")

    def __init__(self, content: Any) -> None:
        self.content, self._hash = content, hash(content)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Fingerprint) and self._hash == other._hash and self.content == other.content)

    def __hash__(self) -> int:
        return self._hash


class Structure:
    """The variables of a module tree by first name, each once, and its fingerprint.

    ``params`` are trained; ``held`` are the buffers, then the parameters that do not require gradients.
    """

    def __init__(self, root: Module) -> None:
        self.version = Version.count
        self.lasting = True
        self.params: dict[str, Parameter] = {}
        self.held: dict[str, Variable] = {}
        self.names: dict[int, str] = {}
        self._modules: dict[int, int] = {}
        frozen: dict[str, Variable] = {}
        hooks = tuple(map(self._freeze, everywhere))
        self.fingerprint = Fingerprint((self._visit(root, "", frozen), hooks))
        self.held.update(frozen)

    def _visit(self, module: Module, prefix: str, frozen: dict[str, Variable]) -> Any:
        if id(module) in self._modules:
            return self._modules[id(module)]
        self._modules[id(module)] = len(self._modules)
        own = []
        for name, variable in (*module._parameters.items(), *module._buffers.items()):
            if variable is None:
                own.append((name, None))
                continue
            if is_lazy(variable):
                rule = "a lazy layer has no parameters yet; call the model once on an example, or load a state_dict"
                checks.fail(module, rule, ValueError, name=prefix + name)
            if id(variable) not in self.names:
                self.names[id(variable)] = prefix + name
                trained = isinstance(variable, Parameter) and variable.requires_grad
                place = self.params if trained else frozen if isinstance(variable, Parameter) else self.held
                place[prefix + name] = variable  # type: ignore[assignment,index]
            own.append((name, self.names[id(variable)], variable.requires_grad, tuple(variable._grad_hooks.values())))
        parts = tuple((n, None if m is None else self._visit(m, f"{prefix}{n}.", frozen)) for n, m in module._modules.items())
        plain = tuple((name, self._freeze(value)) for name, value in module.__dict__.items() if name not in _UNSEEN)
        return type(module), tuple(own), plain, parts

    def _freeze(self, value: Any) -> Any:
        """``value`` as something hashable; a container that can change unseen makes the structure not lasting."""
        if isinstance(value, (list, tuple)):
            self.lasting &= isinstance(value, tuple)
            return type(value), tuple(self._freeze(v) for v in value)
        if isinstance(value, Mapping):
            self.lasting &= isinstance(value, Registry)
            return type(value), tuple((k, self._freeze(v)) for k, v in value.items())
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(value)
        if isinstance(value, (jax.Array, np.ndarray, Variable, Module)):
            return Same(value)
        try:
            hash(value)
        except TypeError:
            return Same(value)
        return type(value), value

    def split(self) -> tuple[tree.Tree, tree.Tree]:
        """Today's values as nested dicts."""
        return tuple(tree.unflatten({n: v.detach() for n, v in group.items()}) for group in (self.params, self.held))  # type: ignore[return-value]


def structure(module: Module) -> Structure:
    """The structure of a module, remembered until any module is edited."""
    found = module.__dict__.get("_structure")
    if found is None or found.version != Version.count or not found.lasting:
        found = module.__dict__["_structure"] = Structure(module)
    return found


class Slot:
    """Stands in a template for the variable of this name."""

    __slots__ = ("hooks", "name")

    def __init__(self, name: str, variable: Variable) -> None:
        self.name, self.hooks = name, tuple(variable._grad_hooks.values())

    def fill(self, value: Any) -> Any:
        """The value that a bound module reads: its gradient passes through the variable's hooks."""

        def on_gradient(gradient: tuple[Any, ...]) -> tuple[Any, ...]:
            for hook in self.hooks:
                gradient = replaced(Variable, gradient, hook(gradient[0]))
            return gradient

        return gate((value,), on_gradient)[0] if self.hooks else value


def clone(module: Module, convert: Callable[[Any], Any], run: tuple[rng.KeyStream, bool | None] | None = None) -> Module:
    """A shallow copy of a module tree with every variable converted; shared modules stay shared.

    With ``run``, a key stream and a training mode (None keeps each module's), the copy belongs to a running call.
    """
    memo: dict[int, Module] = {}

    def visit(module: Module, path: str) -> Module:
        if id(module) in memo:
            return memo[id(module)]
        twin = memo[id(module)] = object.__new__(type(module))
        state = twin.__dict__
        # Hooks are copied so that ones added to either side later do not reach the other.
        state.update({n: OrderedDict(v) if isinstance(v, Registry) else v for n, v in module.__dict__.items() if n != "_structure"})
        for registry in ("_parameters", "_buffers"):
            state[registry] = {n: None if v is None else convert(v) for n, v in state[registry].items()}
        state["_modules"] = {n: None if m is None else visit(m, f"{path}.{n}" if path else n) for n, m in state["_modules"].items()}
        if run is not None:
            state["_bound"] = Binding(run[0], path)
            state["training"] = state["training"] if run[1] is None else run[1]
        return twin

    return visit(module, "")


def template(module: Module) -> Module:
    """The structure of a module without its arrays, untouched by later edits."""
    names = structure(module).names
    return clone(module, lambda variable: Slot(names[id(variable)], variable))


class Bound:
    """A module tree that computes with given, possibly traced, arrays and keeps what is written to its buffers."""

    def __init__(self, template: Module, values: Mapping[str, Any], key: Any, train: bool | None) -> None:
        self._slots: list[tuple[dict[str, Any], str, str]] = []
        self._values = values
        filled: dict[str, Any] = {}

        def fill(slot: Slot) -> Any:
            if slot.name not in filled:
                filled[slot.name] = slot.fill(values[slot.name])
            return filled[slot.name]

        self.module = clone(template, fill, (rng.KeyStream(key), train))
        for original, twin in zip(template.modules(), self.module.modules(), strict=True):
            for name, slot in original._buffers.items():
                if slot is not None:
                    self._slots.append((twin._buffers, name, slot.name))

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``call(module, *args, **kwargs)`` with the run's key stream at hand."""
        binding = self.module._bound
        assert binding is not None
        with rng.scope(binding.stream, ""):
            return call(self.module, *args, **kwargs)

    def written(self) -> dict[str, Any]:
        """The buffers' values by name, as the run has left them."""
        values: dict[str, Any] = {}
        for registry, name, slot in self._slots:
            if slot not in values or registry[name] is not self._values[slot]:
                values[slot] = registry[name]
        return values


def function_key(fn: Callable[..., Any]) -> Any:
    """Equal for two functions of the same code and the same captured values, so that a lambda in a loop compiles once."""
    if not isinstance(fn, FunctionType):
        return Same(fn) if fn.__hash__ is None else fn
    captured = [cell.cell_contents for cell in fn.__closure__ or ()]
    return (
        fn.__code__,
        Same(fn.__globals__),
        tuple(_capture(v) for v in (*captured, *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())),
    )


def _capture(value: Any) -> Any:
    return (type(value), value) if isinstance(value, (int, float, str, bool, bytes, type(None))) else Same(value)


def values(variables: Iterable[Variable]) -> tuple[Any, ...]:
    """The arrays of variables, for a call that does not donate them."""
    return tuple(v._value for v in variables)


def owned_values(variables: Iterable[Variable]) -> tuple[Any, ...]:
    """The arrays of variables, for a call that donates them: copies of those that someone else may hold."""
    return tuple(jax.numpy.copy(v._value) if v._shared else v._value for v in variables)


def put(variables: Iterable[Variable], arrays: Iterable[Any], shared: bool = False) -> None:
    """Write arrays back into variables."""
    for variable, array in zip(variables, arrays, strict=True):
        variable._value, variable._shared = array, shared
