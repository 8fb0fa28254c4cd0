"""Modules made without drawing initial values."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from ..core import checks
from ..module.module import Module

M = TypeVar("M", bound=Module)


def skip_init(module_cls: type[M], *args: Any, **kwargs: Any) -> M:
    """``module_cls(*args, **kwargs)`` whose parameters and buffers are zeros, nothing being drawn for them.

    Args:
        module_cls: a Module class with a ``device`` argument, which passes it on to whatever makes parameters.

    Raises:
        RuntimeError: it is no such class.

    Differs from torch: the values are zeros, not arbitrary.
    """
    ok = isinstance(module_cls, type) and issubclass(module_cls, Module)
    checks.require(ok, "skip_init", "module_cls must be a Module class", RuntimeError, module_cls=module_cls)
    has_device = "device" in inspect.signature(module_cls).parameters
    checks.require(has_device, "skip_init", "module_cls must take a device", RuntimeError, module_cls=module_cls)
    device = kwargs.pop("device", None)
    return module_cls(*args, **kwargs | {"device": "meta"}).to_empty(device=device)
