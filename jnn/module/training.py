"""Compiled training of modules: ``value_and_grad``, ``backward``, ``train_step``."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..core import checks, rng, tree
from .module import Module, live_calls
from .parameter import Variable
from .structure import Bound, Same, function_key, put, structure, template, values

_MOST_PROGRAMS = 64


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)) and not isinstance(leaf, bool)


class Batch:
    """The data arguments of a call, apart: arrays and numbers, and a hashable rest that the trace depends on."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        leaves, self.treedef = jax.tree.flatten(args)
        self.arrays = tuple(leaf for leaf in leaves if _is_traced(leaf))
        self.rest = tuple(None if _is_traced(leaf) else Same(leaf) if leaf.__hash__ is None else (type(leaf), leaf) for leaf in leaves)
        self.key = self.treedef, self.rest

    def rebuild(self, arrays: tuple[Any, ...]) -> Any:
        feed = iter(arrays)
        leaves = [next(feed) if r is None else r.value if isinstance(r, Same) else r[1] for r in self.rest]
        return jax.tree.unflatten(self.treedef, leaves)


class Loss:
    """``loss_fn(model, *batch)`` of one structure as a pure function of tuples of arrays."""

    def __init__(self, loss_fn: Callable[..., Any], model: Module, batch: Batch, has_aux: bool) -> None:
        now = structure(model)
        self._loss_fn, self._batch, self._has_aux = loss_fn, batch, has_aux
        self._template, self._params, self._held = template(model), tuple(now.params), tuple(now.held)
        self._live: list[tuple[Module, Any]] = []

    def __call__(self, params: tuple[Any, ...], held: tuple[Any, ...], seed: Any, arrays: tuple[Any, ...]) -> Any:
        """``(loss, (aux, new buffers by name))``."""
        named = dict(zip(self._params + self._held, params + held, strict=True))
        bound = Bound(self._template, named, jax.random.fold_in(*seed), None)
        calls: list[Module] = []
        token = live_calls.set(calls)
        try:
            result = bound.run(self._loss_fn, *self._batch.rebuild(arrays))
        finally:
            live_calls.reset(token)
        self._live += [(module, _state_of(module)) for module in calls]
        if self._has_aux:
            ok = isinstance(result, tuple) and len(result) == 2
            checks.require(ok, self._loss_fn, "with has_aux it must return (loss, aux)", TypeError, returned=type(result))
        loss, aux = result if self._has_aux else (result, None)
        shape = getattr(loss, "shape", None)
        checks.require(shape == (), self._loss_fn, "the loss must be a scalar array", TypeError, loss=loss if shape is None else shape)
        return loss, (aux, bound.written())

    def current(self) -> bool:
        """Whether the modules that it called without being given them, whose arrays became constants, are as they were."""
        return all(_state_of(module) == state for module, state in self._live)


def _state_of(module: Module) -> Any:
    now = structure(module)
    return now.fingerprint, tuple(Same(a) for a in values((*now.params.values(), *now.held.values())))


class Programs:
    """Compiled functions by what they were compiled for; the least recently used are dropped."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Any, tuple[Loss, Callable[..., Any]]] = OrderedDict()

    def get(self, key: Any, make_loss: Callable[[], Loss], compile: Callable[[Loss], Callable[..., Any]]) -> Callable[..., Any]:
        found = self._programs.get(key)
        if found is None or not found[0].current():
            loss = make_loss()
            found = self._programs[key] = loss, compile(loss)
            if len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return found[1]


_gradients = Programs()


def _require_model(who: str, model: Any) -> Module:
    checks.require(isinstance(model, Module), who, "the first argument after the function must be a Module", TypeError, model=type(model))
    return model


def _compile_gradient(loss: Loss) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _evaluate(
    who: str, loss_fn: Callable[..., Any], model: Module, args: tuple[Any, ...], has_aux: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """``(loss, aux, gradients by name)``, the model's buffers written back."""
    now = structure(_require_model(who, model))
    batch = Batch(args)
    key = function_key(loss_fn), now.fingerprint, batch.key, has_aux
    run = _gradients.get(key, lambda: Loss(loss_fn, model, batch, has_aux), _compile_gradient)
    arrays = values(now.params.values()), values(now.held.values())
    (loss, (aux, written)), grads = run(*arrays, rng.default_generator.state(), batch.arrays)
    write_back(now.held, written)
    return loss, aux, dict(zip(now.params, grads, strict=True))


def write_back(held: Mapping[str, Variable], written: Mapping[str, Any], shared: bool = True) -> None:
    """Write the buffers that a compiled call returned into the module."""
    put((held[name] for name in written), written.values(), shared)


def value_and_grad(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """A function ``(model, *batch) -> (loss, grads)`` of a ``loss_fn(model, *batch)`` that returns a scalar.

    It is compiled once per structure of the model and form of the batch. ``grads`` is a nested dict like the ``params`` of
    ``jnn.split``. Buffers that the call writes (running statistics) are written back. Each submodule is in its own mode.
    In the batch, arrays and numbers are data; anything else (strings, bools, None, functions) is fixed at compilation.

    Args:
        has_aux: ``loss_fn`` returns ``(loss, aux)``, and the function ``((loss, aux), grads)``.
    """

    @functools.wraps(loss_fn)
    def evaluate(model: Module, *batch: Any) -> Any:
        loss, aux, grads = _evaluate("value_and_grad", loss_fn, model, batch, has_aux)
        return ((loss, aux) if has_aux else loss), tree.unflatten(grads)

    return evaluate


@jax.jit
def _add(old: list[jax.Array], new: list[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(old, new, strict=True)]


def backward(loss_fn: Callable[..., Any], model: Module, *batch: Any, has_aux: bool = False) -> Any:
    """Add the gradients of ``loss_fn(model, *batch)`` to each parameter's ``grad``; returns the loss.

    Does what ``loss_fn(model, *batch).backward()`` does in torch, in one compiled call; see :func:`value_and_grad`.

    Args:
        has_aux: ``loss_fn`` returns ``(loss, aux)``, and so does this.
    """
    loss, aux, grads = _evaluate("backward", loss_fn, model, batch, has_aux)
    params = structure(model).params
    held = [name for name in grads if params[name].grad is not None]
    sums = _add([params[name].grad for name in held], [grads[name] for name in held]) if held else []
    for name, grad in (grads | dict(zip(held, sums, strict=True))).items():
        params[name]._grad = grad
    return (loss, aux) if has_aux else loss


def train_step(loss_fn: Callable[..., Any], optimizer: Any, has_aux: bool = False) -> Callable[..., Any]:
    """A function ``(*batch) -> loss`` that runs forward, backward, update and buffers in one compiled step.

    The step trains the optimizer's model. It donates parameters, buffers and optimizer state, so that none of them is held
    twice in memory; arrays that were handed out before (by ``split``, ``state_dict``, ``detach``) stay valid.

    Args:
        loss_fn: ``loss_fn(model, *batch)``, returning a scalar.
        optimizer: a ``jnn.optim.Optimizer``.
        has_aux: ``loss_fn`` returns ``(loss, aux)``, and so does the step.
    """
    programs = Programs()

    @functools.wraps(loss_fn)
    def step(*args: Any) -> Any:
        model = optimizer.model
        batch = Batch(args)
        now = structure(model)
        key = now.fingerprint, batch.key, optimizer.prepare()
        run = programs.get(key, lambda: Loss(loss_fn, model, batch, has_aux), optimizer.compile_step)
        loss, aux = optimizer.run_step(run, rng.default_generator.state(), batch.arrays)
        return (loss, aux) if has_aux else loss

    return step
