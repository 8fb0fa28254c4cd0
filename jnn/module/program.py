"""Functions of a module as pure, compiled functions of its arrays: one program for each structure and form of the data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..core import rng
from .module import Module, live_calls
from .parameter import Variable
from .structure import Bound, Same, put, structure, template, values

_MOST_PROGRAMS = 64


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)) and not isinstance(leaf, bool)


class Batch:
    """The data arguments of a call, apart: arrays and numbers, and a hashable rest that the trace depends on."""

    def __init__(self, args: Any) -> None:
        leaves, self.treedef = jax.tree.flatten(args)
        self.arrays = tuple(leaf for leaf in leaves if _is_traced(leaf))
        self.rest = tuple(None if _is_traced(leaf) else Same(leaf) if leaf.__hash__ is None else (type(leaf), leaf) for leaf in leaves)
        self.key = self.treedef, self.rest

    def rebuild(self, arrays: tuple[Any, ...]) -> Any:
        """The arguments with other, possibly traced, arrays."""
        feed = iter(arrays)
        leaves = [next(feed) if r is None else r.value if isinstance(r, Same) else r[1] for r in self.rest]
        return jax.tree.unflatten(self.treedef, leaves)


class Program:
    """``call(model, *batch)`` of one structure as a pure function of tuples of arrays."""

    def __init__(self, call: Callable[..., Any], model: Module, batch: Batch) -> None:
        now = structure(model)
        self._call, self._batch = call, batch
        self.template, self._params, self.held_names = template(model), tuple(now.params), tuple(now.held)
        self._live: list[tuple[Module, Any]] = []

    def __call__(self, params: tuple[Any, ...], held: tuple[Any, ...], seed: Any, arrays: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        """``(result, new buffers by name)``."""
        named = dict(zip(self._params + self.held_names, params + held, strict=True))
        bound = Bound(self.template, named, jax.random.fold_in(*seed), None)
        calls: list[Module] = []
        token = live_calls.set(calls)
        try:
            result = bound.run(self._call, *self._batch.rebuild(arrays))
        finally:
            live_calls.reset(token)
        self._live += [(module, _state_of(module)) for module in calls]
        return result, bound.written()

    def current(self) -> bool:
        """Whether the modules that it called without being given them, whose arrays became constants, are as they were."""
        return all(_state_of(module) == state for module, state in self._live)


def _state_of(module: Module) -> Any:
    now = structure(module)
    return now.fingerprint, tuple(Same(a) for a in values((*now.params.values(), *now.held.values())))


class Programs:
    """Compiled functions by what they were compiled for; the least recently used are dropped."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Any, tuple[Program, Callable[..., Any]]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Program], compile: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
        """The function compiled for ``key``, made where there is none that still holds."""
        found = self._programs.get(key)
        if found is None or not found[0].current():
            program = make()
            found = self._programs[key] = program, compile(program)
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return found[1]


def write_back(held: Mapping[str, Variable], written: Mapping[str, Any], shared: bool = True) -> None:
    """Write the buffers that a compiled call returned into the module."""
    put((held[name] for name in written), written.values(), shared)


_calls = Programs()


def _forward(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def call_compiled(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a live module as one compiled program; what ``Module.compile`` makes of calls."""
    batch, now = Batch((args, kwargs)), structure(module)
    if any(isinstance(a, Tracer) for a in batch.arrays):
        return module._run(args, kwargs)
    run = _calls.get((now.fingerprint, batch.key), lambda: Program(_forward, module, batch), jax.jit)
    arrays = values(now.params.values()), values(now.held.values())
    result, written = run(*arrays, rng.default_generator.state(), batch.arrays)
    write_back(now.held, written)
    return result
