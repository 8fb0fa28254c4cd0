"""Hooks on calls: their registries, handles and order; those of all modules at once."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from .backward import BackwardHooks
from .registry import Registry


class RemovableHandle:
    """What registering a hook returns; also a context manager that removes it on exit."""

    _ids = itertools.count()

    def __init__(self, hooks: Any) -> None:
        self._hooks = weakref.ref(hooks)
        self.id = next(self._ids)

    def remove(self) -> None:
        """Take the hook out; again does nothing."""
        hooks = self._hooks()
        if hooks is not None and self.id in hooks:
            del hooks[self.id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Hook(NamedTuple):
    """A hook on calls and how it was registered."""

    call: Callable[..., Any]
    with_kwargs: bool = False
    always_call: bool = False


class Hooks(NamedTuple):
    """The hooks on one kind of call: before and after forward, and on its gradients."""

    forward_pre: Registry
    forward: Registry
    backward_pre: Registry
    backward: Registry

    def __bool__(self) -> bool:
        return any(self[i] for i in range(4))


everywhere = Hooks(Registry(), Registry(), Registry(), Registry())


def register(hooks: Any, hook: Any, prepend: bool = False) -> RemovableHandle:
    """Add a hook, first when ``prepend``."""
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def register_module_forward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(module, args)`` before the forward of every module."""
    return register(everywhere.forward_pre, Hook(hook))


def register_module_forward_hook(hook: Callable[..., Any], *, with_kwargs: bool = False, always_call: bool = False) -> RemovableHandle:
    """Call ``hook(module, args, output)`` after the forward of every module."""
    return register(everywhere.forward, Hook(hook, with_kwargs, always_call))


def register_module_full_backward_pre_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(module, grad_output)`` before the gradients pass back through every module."""
    return register(everywhere.backward_pre, Hook(hook))


def register_module_full_backward_hook(hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(module, grad_input, grad_output)`` when the gradients have passed back through every module."""
    return register(everywhere.backward, Hook(hook))


def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], own: Hooks) -> Any:
    """``module.forward`` with its hooks around it, those of all modules first."""
    pre, post, grad_pre, grad = ([*e.values(), *o.values()] for e, o in zip(everywhere, own, strict=True))
    ran: set[int] = set()
    result = None
    try:
        for hook in pre:
            args, kwargs = _before(module, hook, args, kwargs)
        gates = None
        if grad_pre or grad:
            gates = BackwardHooks(module, grad_pre, grad)
            args = gates.inputs(args)
        result = module.forward(*args, **kwargs)
        for position, hook in enumerate(post):
            ran.add(position)
            result = _after(module, hook, args, kwargs, result)
        return result if gates is None else gates.outputs(result)
    except Exception:
        for position, hook in enumerate(post):
            if hook.always_call and position not in ran:
                try:
                    result = _after(module, hook, args, kwargs, result)
                except Exception as error:
                    name = type(module).__name__
                    warnings.warn(f"{name}: a forward hook raised {error!r} while another error was under way", UserWarning, stacklevel=2)
        raise


def _before(module: Any, hook: Hook, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not hook.with_kwargs:
        result = hook.call(module, args)
        if result is None:
            return args, kwargs
        return (result if isinstance(result, tuple) else (result,)), kwargs
    result = hook.call(module, args, kwargs)
    if result is None:
        return args, kwargs
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise RuntimeError(f"{type(module).__name__}: a forward pre-hook with kwargs must return None or (args, kwargs), got {result!r}")


def _after(module: Any, hook: Hook, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    new = hook.call(module, args, kwargs, result) if hook.with_kwargs else hook.call(module, args, result)
    return result if new is None else new
