"""Modes, dtypes and devices of a module tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.spec import find_device
from .parameter import Variable
from .traversal import Traversal


class Conversion(Traversal):
    """The part of Module that changes the whole tree."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode on the whole tree; returns self."""
        checks.require(isinstance(mode, bool), self, "mode must be a bool", ValueError, mode=mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode on the whole tree; returns self."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or freeze them; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = None if set_to_none else jnp.zeros_like(parameter.grad)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert parameters and buffers: ``to(dtype)``, ``to(device)``, ``to(device, dtype)``, ``to(array)``.

        ``dtype`` applies to floating point and complex values only; ``device`` is torch's string or a jax device or sharding.
        """
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        for accepted in ("non_blocking", "copy"):
            kwargs.pop(accepted, None)
        checks.require(not kwargs, self, "to() takes dtype, device, non_blocking and copy", TypeError, got=[*kwargs])
        for arg in args:
            named = isinstance(arg, str) and arg.partition(":")[0] in ("cpu", "cuda", "gpu", "tpu")
            if isinstance(arg, (jax.Array, np.ndarray, Variable)):
                dtype = arg.dtype
            elif named or isinstance(arg, (jax.Device, jax.sharding.Sharding)):
                device = arg
            elif arg is not None and not isinstance(arg, bool):
                dtype = arg
        if dtype is not None:
            checks.require(jnp.issubdtype(dtype, np.inexact), self, "dtype must be floating point or complex", TypeError, dtype=dtype)
        device = None if device is None else find_device(self, device)
        return self._apply(lambda variable: variable._cast(dtype, device))

    def _apply(self, fn: Callable[[Variable], Any], recurse: bool = True) -> Self:
        """Call ``fn`` once on every variable of the tree."""
        modules = self.modules() if recurse else [self]
        held = (v for m in modules for v in (*m._parameters.values(), *m._buffers.values()) if v is not None)
        for variable in {id(v): v for v in held}.values():
            fn(variable)
        return self

    def type(self, dst_type: Any) -> Self:
        """Convert floating point and complex values to a dtype."""
        return self.to(dtype=dst_type)

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(dtype=jnp.float32)

    def double(self) -> Self:
        """Convert to float64, which needs JAX's x64 mode."""
        return self.to(dtype=np.float64)

    def half(self) -> Self:
        """Convert to float16."""
        return self.to(dtype=jnp.float16)

    def bfloat16(self) -> Self:
        """Convert to bfloat16."""
        return self.to(dtype=jnp.bfloat16)

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to(device="cpu")

    def cuda(self, device: Any = None) -> Self:
        """Move to a GPU, the first or the one of a number; a RuntimeError where there is none."""
        return self.to(device=f"cuda:{device or 0}" if device is None or isinstance(device, int) else device)

    def xpu(self, device: Any = None) -> Self:
        """Refused: JAX has no such device."""
        checks.fail(self, "no such device here", RuntimeError, device="xpu")

    ipu = mtia = xpu

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Make abstract parameters and buffers real, with zeros for values, on ``device``; returns self."""
        device = None if device is None else find_device(self, device)

        def make(variable: Variable) -> None:
            variable.data = jax.device_put(jnp.zeros(variable.shape, variable.dtype), device)

        return self._apply(make, recurse)

    def share_memory(self) -> Self:
        """Does nothing: arrays are immutable, so processes share by copy; returns self."""
        return self
