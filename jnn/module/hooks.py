"""Hooks on calls: their registries, handles and order."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from .registry import Registry


class RemovableHandle:
    """What registering a hook returns; also a context manager that removes it on exit."""

    _ids = itertools.count()

    def __init__(self, hooks: Registry) -> None:
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
    """A hook and how it was registered."""

    call: Callable[..., Any]
    with_kwargs: bool = False
    always_call: bool = False


def register(hooks: Registry, hook: Hook, prepend: bool = False) -> RemovableHandle:
    """Add a hook, first when ``prepend``."""
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], pre: list[Hook], post: list[Hook]) -> Any:
    """``module.forward`` with its hooks around it."""
    ran: set[int] = set()
    result = None
    try:
        for hook in pre:
            args, kwargs = _before(module, hook, args, kwargs)
        result = module.forward(*args, **kwargs)
        for position, hook in enumerate(post):
            ran.add(position)
            result = _after(module, hook, args, kwargs, result)
        return result
    except Exception:
        for position, hook in enumerate(post):
            if hook.always_call and position not in ran:
                result = _after(module, hook, args, kwargs, result)
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
