"""``Optimizer``: an optax transformation that trains a Module."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .core import checks, tree
from .module.module import Module
from .module.parameter import Parameter
from .module.program import write_back
from .module.structure import owned_values, put, structure, values
from .module.training import Loss

Named = dict[str, Any]


def _grouped(groups: Mapping[Any, optax.GradientTransformation]) -> optax.GradientTransformation:
    patterns = list(groups)

    def label(name: str) -> str:
        found = next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
        if found is None:
            checks.fail(Optimizer, "every trained parameter must match a group", ValueError, name=name, groups=patterns)
        return found

    return optax.multi_transform(dict(groups), lambda params: {name: label(name) for name in params})


class Optimizer:
    """Trains the parameters of ``model`` that require gradients by an optax transformation.

    Args:
        model: the module whose parameters are trained, as they are at each step: ones frozen later are left alone, ones
            added later join with fresh state.
        transform: an optax transformation, or a dict of them by pattern on parameter names (``{"head.*": ..., "*": ...}``,
            the first pattern that matches counts; ``*`` spans dots).

    Differs from torch: learning rates, schedules and momentum belong to the transformation.
    """

    def __init__(self, model: Module, transform: optax.GradientTransformation | Mapping[str, optax.GradientTransformation]) -> None:
        checks.require(isinstance(model, Module), self, "model must be a Module", TypeError, model=type(model))
        if isinstance(transform, Mapping):
            transform = _grouped(transform)
        checks.require(
            hasattr(transform, "update"), self, "transform must be an optax transformation", TypeError, transform=type(transform)
        )
        self.model = model
        self._transform = optax.with_extra_args_support(transform)
        self._names: tuple[str, ...] | None = None
        self._state: Any = None
        self._kept: Named = {}
        self._apply = jax.jit(self._update, donate_argnums=(1, 2))
        self.prepare()

    def prepare(self) -> tuple[str, ...]:
        """Bring the state in line with the parameters trained now; returns their names."""
        params = structure(self.model).params
        names = tuple(params)
        if names != self._names:
            self._kept |= self._leaves()
            fresh = self._transform.init({n: p.detach() for n, p in params.items()})
            self._state, self._names = self._restore(fresh, self._kept), names
        return names

    def _leaves(self) -> Named:
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(self._state)[0]}

    @staticmethod
    def _restore(fresh: Any, kept: Named) -> Any:
        # Copied, because a step donates the state and the same leaf may be kept for later or belong to the caller.
        return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.array(kept.get(jax.tree_util.keystr(path), leaf)), fresh)

    def _update(self, grads: Named, params: Named, state: Any) -> tuple[Named, Any]:
        updates, state = self._transform.update(grads, state, params)
        new: Any = optax.apply_updates(params, updates)
        return new, state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the model, or set them to zero."""
        self.model.zero_grad(set_to_none)

    def step(self, grads: Mapping[str, Any] | None = None) -> None:
        """Update the parameters from ``grads``, or from each parameter's ``grad``.

        Args:
            grads: nested or flat dict like the ``params`` of ``jnn.split``; a parameter without a gradient is left alone,
                with its momentum, as in torch.
        """
        names = self.prepare()
        params = structure(self.model).params
        given = {n: p.grad for n, p in params.items() if p.grad is not None} if grads is None else tree.flatten(grads)
        unknown = sorted(given.keys() - params.keys())
        checks.require(not unknown, self, "grads must be of trained parameters", KeyError, unknown=unknown)
        if not given:
            return
        full = {n: given[n] if n in given else jnp.zeros(params[n].shape, params[n].dtype) for n in names}
        if len(given) == len(names):
            new, self._state = self._apply(full, dict(zip(names, owned_values(params.values()), strict=True)), self._state)
        else:
            new, self._state = self._partial_step(given, full, params)
        put(params.values(), (new[n] for n in names))

    def _partial_step(self, given: Named, full: Named, params: Mapping[str, Parameter]) -> tuple[Named, Any]:
        old = {n: p.detach() for n, p in params.items()}
        new, state = jax.jit(self._update)(full, old, self._state)

        def own(path: tuple[Any, ...]) -> bool:
            """Whether a leaf of the state belongs to a parameter that is left alone."""
            return any(isinstance(k, jax.tree_util.DictKey) and k.key in old and k.key not in given for k in path)

        state = jax.tree_util.tree_map_with_path(lambda path, after, before: jnp.array(before) if own(path) else after, state, self._state)
        return {n: new[n] if n in given else jnp.array(old[n]) for n in old}, state

    def step_function(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """One step with what ``gradient`` gives, over the tuples of arrays that ``run_step`` passes."""
        names = self._names
        assert names is not None

        def step(params: tuple[Any, ...], held: tuple[Any, ...], state: Any, seed: Any, arrays: tuple[Any, ...]) -> Any:
            (value, (aux, written)), grads = gradient(params, held, seed, arrays)
            named = dict(zip(names, params, strict=True))
            new, state = self._update(dict(zip(names, grads, strict=True)), named, state)
            return tuple(new[n] for n in names), state, written, value, aux

        return step

    def compile_step(self, loss: Loss) -> Callable[..., Any]:
        """One donated step of ``loss`` and this optimizer."""
        return jax.jit(self.step_function(jax.value_and_grad(loss, has_aux=True)), donate_argnums=(0, 2))

    def run_step(self, run: Callable[..., Any], seed: Any, arrays: tuple[Any, ...]) -> tuple[Any, Any]:
        """Run a compiled step and write back what it returns; gives ``(loss, aux)``."""
        now = structure(self.model)
        params, self._state, written, loss, aux = run(
            owned_values(now.params.values()), values(now.held.values()), self._state, seed, arrays
        )
        put(now.params.values(), params)
        write_back(now.held, written)
        return loss, aux

    def lower_step(self, run: Any, seed: Any, arrays: tuple[Any, ...]) -> Any:
        """A compiled step lowered for what ``run_step`` would pass; nothing is run."""
        now = structure(self.model)
        return run.lower(values(now.params.values()), values(now.held.values()), self._state, seed, arrays)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The transformation's state by path, as numpy arrays."""
        self.prepare()
        return {path: np.asarray(leaf) for path, leaf in self._leaves().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state that ``state_dict`` gave for the same transformation and parameter names.

        Raises:
            RuntimeError: names or shapes differ; all are named, and nothing has changed.
        """
        self.prepare()
        own = self._leaves()
        problems = [f"missing {n}" for n in own if n not in state_dict] + [f"unexpected {n}" for n in state_dict if n not in own]
        for name in own.keys() & state_dict.keys():
            if np.shape(state_dict[name]) != own[name].shape:
                problems.append(f"{name}: shape {np.shape(state_dict[name])}, here {own[name].shape}")
        checks.require(not problems, self, "the state does not fit: " + "; ".join(problems), RuntimeError)

        def place(name: str, value: Any) -> Any:
            array = jnp.asarray(value, own[name].dtype)
            # What is spread over devices stays so. An array on one is not bound to it, for a later mesh to take it.
            return jax.device_put(array, own[name].sharding) if own[name].sharding.num_devices > 1 else array

        self._state = self._restore(self._state, {n: place(n, v) for n, v in state_dict.items()})
