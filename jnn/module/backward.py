"""Hooks on gradients, as gates through which the gradients of a call pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks

Gradients = tuple[Any, ...]


def gate(values: Gradients, on_gradient: Callable[[Gradients], Gradients], on_forward: Callable[[], None] = lambda: None) -> Gradients:
    """``values`` unchanged, whose gradients become ``on_gradient(gradients)``; ``on_forward`` is called if they are differentiated.

    A rule for reverse mode: forward mode is refused by JAX where such hooks are.
    """

    @jax.custom_vjp
    def identity(*xs: Any) -> Gradients:
        return xs

    def forward(*xs: Any) -> tuple[Gradients, None]:
        on_forward()
        return xs, None

    identity.defvjp(forward, lambda _, gradients: on_gradient(gradients))
    return identity(*values)


def replaced(who: Any, old: Gradients, new: Any) -> Gradients:
    """The gradients after a hook has returned ``new``: unchanged for None, else as many of the same shapes."""
    if new is None:
        return old
    new = new if isinstance(new, tuple) else (new,)
    ok = len(new) == len(old) and all(n is None or o is None or n.shape == o.shape for n, o in zip(new, old, strict=True))
    checks.require(ok, who, "a backward hook must return None or as many gradients of the same shapes", RuntimeError, returned=len(new))
    return tuple(o if n is None or o is None else jnp.asarray(n, o.dtype) for n, o in zip(new, old, strict=True))


class BackwardHooks:
    """The gates around one call of a module with backward hooks: at its inputs and at its outputs."""

    def __init__(self, module: Any, pre: list[Any], full: list[Any]) -> None:
        self._module, self._pre, self._full = module, pre, full
        self._inputs_differentiated = False
        self._inputs = 0
        self._grad_output: Gradients = ()

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments, those that are float arrays gated."""
        self._inputs = len(args)
        where = [i for i, a in enumerate(args) if _is_float(a)]
        if not where or not self._full:
            return args

        def on_gradient(gradients: Gradients) -> Gradients:
            full: list[Any] = [None] * len(args)
            for i, g in zip(where, gradients, strict=True):
                full[i] = g
            new = self._call_full(tuple(full))
            return tuple(new[i] for i in where)

        gated = list(args)
        for i, value in zip(where, gate(tuple(args[i] for i in where), on_gradient, self._note), strict=True):
            gated[i] = value
        return tuple(gated)

    def outputs(self, result: Any) -> Any:
        """The result, its float arrays gated."""
        leaves, treedef = jax.tree.flatten(result)
        where = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

        def on_gradient(gradients: Gradients) -> Gradients:
            for hook in self._pre:
                gradients = replaced(self._module, gradients, hook.call(self._module, gradients))
            self._grad_output = gradients
            if not self._inputs_differentiated and self._full:
                self._call_full((None,) * self._inputs)
            return gradients

        for i, value in zip(where, gate(tuple(leaves[i] for i in where), on_gradient), strict=True):
            leaves[i] = value
        return jax.tree.unflatten(treedef, leaves)

    def _note(self) -> None:
        self._inputs_differentiated = True

    def _call_full(self, grad_input: Gradients) -> Gradients:
        for hook in self._full:
            grad_input = replaced(self._module, grad_input, hook.call(self._module, grad_input, self._grad_output))
        return grad_input


def _is_float(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, np.inexact)
