"""Compiled training of modules: ``value_and_grad``, ``backward``, ``train_step``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..core import checks, rng, tree
from .module import Module
from .program import Batch, Program, Programs, write_back
from .structure import function_key, structure, values


class Loss(Program):
    """A program that returns ``(loss, (aux, new buffers))``, once the loss is known to be a scalar."""

    def __init__(self, loss_fn: Callable[..., Any], model: Module, batch: Batch, has_aux: bool) -> None:
        super().__init__(loss_fn, model, batch)
        self._has_aux = has_aux

    def __call__(self, params: tuple[Any, ...], held: tuple[Any, ...], seed: Any, arrays: tuple[Any, ...]) -> Any:
        result, written = super().__call__(params, held, seed, arrays)
        if self._has_aux:
            ok = isinstance(result, tuple) and len(result) == 2
            checks.require(ok, self._call, "with has_aux it must return (loss, aux)", TypeError, returned=type(result))
        loss, aux = result if self._has_aux else (result, None)
        shape = getattr(loss, "shape", None)
        checks.require(shape == (), self._call, "the loss must be a scalar array", TypeError, loss=loss if shape is None else shape)
        return loss, (aux, written)


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
    placement = model._placement(who)
    key = function_key(loss_fn), now.fingerprint, batch.key, has_aux, placement
    compile = _compile_gradient if placement is None else placement.compile_gradient
    run = _gradients.get(key, lambda: Loss(loss_fn, model, batch, has_aux), compile)
    arrays = values(now.params.values()), values(now.held.values())
    (loss, (aux, written)), grads = run(*arrays, rng.default_generator.state(), batch.arrays)
    write_back(now.held, written)
    return loss, aux, dict(zip(now.params, grads, strict=True))


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
    model._accumulated()
    for parameter in params.values():
        for hook in parameter._accumulate_hooks.values():
            hook(parameter)
    return (loss, aux) if has_aux else loss


def train_step(loss_fn: Callable[..., Any], optimizer: Any, has_aux: bool = False, placement: Any = None) -> Callable[..., Any]:
    """A function ``(*batch) -> loss`` that runs forward, backward, update and buffers in one compiled step.

    The step trains the optimizer's model. It donates parameters, buffers and optimizer state, so that none of them is held
    twice in memory; arrays that were handed out before (by ``split``, ``state_dict``, ``detach``) stay valid.
    ``step.lower(*batch)`` gives the step as ``jax.jit`` lowers it, to compile and look at.

    Args:
        loss_fn: ``loss_fn(model, *batch)``, returning a scalar.
        optimizer: a ``jnn.optim.Optimizer``.
        has_aux: ``loss_fn`` returns ``(loss, aux)``, and so does the step.
        placement: on which devices and how, a ``jnn.parallel.Placement``; see ``jnn.parallel.train_step``.
    """
    programs = Programs()

    def prepare(args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        model = optimizer.model
        batch = Batch(args)
        now = structure(model)
        place = placement or model._placement("train_step")
        key = now.fingerprint, batch.key, optimizer.prepare(), place
        compile = optimizer.compile_step if place is None else functools.partial(place.compile_step, optimizer)
        return programs.get(key, lambda: Loss(loss_fn, model, batch, has_aux), compile), batch.arrays

    @functools.wraps(loss_fn)
    def step(*args: Any) -> Any:
        run, arrays = prepare(args)
        loss, aux = optimizer.run_step(run, rng.default_generator.state(), arrays)
        return (loss, aux) if has_aux else loss

    def lower(*args: Any) -> Any:
        run, arrays = prepare(args)
        return optimizer.lower_step(run, rng.default_generator.state(), arrays)

    step.lower = lower  # type: ignore[attr-defined]
    return step
