"""From a Module to the pure pair and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core import checks, rng, tree
from ..core.spec import Layer, require_names
from .module import Module
from .parameter import Buffer, Parameter, Variable
from .structure import Bound, structure, template


class Pure:
    """The pure pair of a module as it was when this was made: ``init`` and ``apply``, as of a pure layer."""

    def __init__(self, module: Module) -> None:
        now = structure(module)
        self._template = template(module)
        self._params, self._held = [*now.params], [*now.held]
        # Parameters and buffers that no layer's setup makes have no other initial value than today's.
        self._given = {
            now.names[id(v)]: v.detach()
            for m in module.modules()
            for n, v in _own(m).items()
            if not (isinstance(m, Layer) and _by_setup(m) and n in m._state_names)
        }

    def init(self, key: jax.Array) -> tuple[tree.Tree, tree.Tree]:
        """Fresh ``(params, buffers)``: by each layer's initial distribution, or by ``reset_parameters`` where a module has it.

        Arrays that a module made in its own constructor keep the values they had when this pair was made.
        """
        values = dict(self._given)
        for path, module in self._template.named_modules():
            if hasattr(module, "reset_parameters") and _own(module):
                values |= _reset(module, rng.fold(key, path), self._given)
        for path, module in self._template.named_modules():
            if isinstance(module, Layer) and type(module).redrawn is not Layer.redrawn:
                prefix = f"{path}." if path else ""
                own = {n.removeprefix(prefix): values[n] for n in self._params if n.startswith(prefix)}
                values |= {prefix + n: v for n, v in module.redrawn(rng.fold(key, path), own).items()}
        return tuple(tree.unflatten({n: values[n] for n in names}) for names in (self._params, self._held))  # type: ignore[return-value]

    def apply(
        self,
        params: Mapping[str, Any],
        buffers: Mapping[str, Any],
        *args: Any,
        train: bool | None = False,
        key: jax.Array | None = None,
        **kwargs: Any,
    ) -> tuple[Any, tree.Tree]:
        """``(output, new_buffers)`` of the module's ``forward``, hooks included.

        Args:
            train: the mode of every submodule; None keeps the mode that each had.
            key: feeds whatever is random.
        """
        values = {**tree.flatten(params), **tree.flatten(buffers)}
        require_names(type(self._template), {*self._params, *self._held}, {*values})
        bound = Bound(self._template, values, key, train)
        output = bound.run(Module.__call__, *args, **kwargs)
        written = bound.written()
        return output, tree.unflatten({n: written.get(n, values[n]) for n in self._held})

    def __repr__(self) -> str:
        return f"pure({self._template!r})"


def _own(module: Module) -> dict[str, Any]:
    return {n: v for n, v in (*module._parameters.items(), *module._buffers.items()) if v is not None}


def _by_setup(module: Module) -> bool:
    """Whether a module's state is what its layer's ``setup`` gives, no subclass having its own way."""
    return isinstance(module, Layer) and getattr(type(module), "reset_parameters", None) is Module._reset_parameters


def _reset(module: Any, key: jax.Array, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fresh values of a module's own variables by their first name in the tree."""
    slots = _own(module)
    if _by_setup(module):
        fresh = module.setup(key)  # and not own_state: the pair of an abstract module makes real arrays
        return {slot.name: fresh[name] for name, slot in slots.items() if fresh.get(name) is not None}
    local = copy.copy(module)
    local._parameters = {n: Parameter(given[s.name]) for n, s in slots.items() if n in module._parameters}
    local._buffers = {n: Buffer(given[s.name]) for n, s in slots.items() if n in module._buffers}
    with rng.scope(rng.KeyStream(key), ""):
        local.reset_parameters()
    return {slot.name: getattr(local, name)._value for name, slot in slots.items()}


def pure(module: Module) -> Pure:
    """The pure pair of a module as it is now; later edits of the module do not reach it."""
    checks.require(isinstance(module, Module), "pure", "module must be a Module", TypeError, module=type(module))
    return Pure(module)


def split(module: Module) -> tuple[tree.Tree, tree.Tree]:
    """``(params, buffers)``: today's values as nested dicts. Parameters that do not require gradients are in ``buffers``."""
    return structure(module).split()


def update(module: Module, params: Mapping[str, Any], buffers: Mapping[str, Any] | None = None) -> None:
    """Write values back into the module. ``buffers`` may be left out; names and shapes must be the module's."""
    now = structure(module)
    given = {**tree.flatten(params), **tree.flatten(buffers or {})}
    expected = {**now.params, **(now.held if buffers is not None else {})}
    require_names(type(module), {*expected}, {*given})
    for name, variable in expected.items():
        value = jnp.asarray(given[name])
        checks.require(
            value.shape == variable.shape, module, f"{name} must keep its shape", RuntimeError, shape=variable.shape, new=value.shape
        )
    for name, variable in expected.items():
        variable.data = given[name]


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Mapping[str, Any] | tuple[Mapping[str, Any], ...],
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call a module with some of its parameters and buffers replaced, as ``torch.func.functional_call``.

    Args:
        parameter_and_buffer_dicts: values by dotted name, or nested dicts, or a tuple of such dicts with no name twice.
        args: one argument, or a tuple of them.
        tie_weights: whether a value given under one name of a tied parameter counts for its other names.
        strict: whether every parameter and buffer must be given, and no unknown name.

    Differs from torch: buffers that the call writes are not changed; ``jnn.pure`` returns them.
    """
    dicts = parameter_and_buffer_dicts if isinstance(parameter_and_buffer_dicts, (tuple, list)) else (parameter_and_buffer_dicts,)
    given: dict[str, Any] = {}
    for flat in map(tree.flatten, dicts):
        twice = sorted(given.keys() & flat.keys())
        checks.require(not twice, "functional_call", "a name must be given once", names=twice)
        given |= flat
    args = () if args is None else args if isinstance(args, tuple) else (args,)
    now = structure(module)
    current: dict[str, Variable] = {**now.params, **now.held}
    names = {n: v for registry in ("_parameters", "_buffers") for n, v in module._named(registry, "", True, False)}
    if strict:
        # A tied parameter may be given under any one of its names.
        covered = {id(names[n]) for n in given if n in names}
        lacking = {n for n, v in current.items() if id(v) not in covered}
        require_names(functional_call.__name__, lacking | {*given} & {*names}, {*given}, RuntimeError)
    values: dict[str, Any] = {n: v.detach() for n, v in current.items()}
    first = {id(v): n for n, v in current.items()}
    for name, value in given.items():
        if name in names and (tie_weights or first[id(names[name])] == name):
            values[first[id(names[name])]] = value
    bound = Bound(template(module), values, None, None)
    return Module.__call__(bound.module, *args, **(kwargs or {}))
