"""``Parameter`` and ``Buffer``: named boxes around immutable arrays, so that torch's in-place idioms work."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes, rng
from .hooks import RemovableHandle, register
from .registry import Registry, Version

Array = jax.Array


def unboxed(value: Any) -> Any:
    """The array of a variable; anything else unchanged. (An array's own ``_value`` would be a copy on the host.)"""
    return value._value if isinstance(value, Variable) else value


class Variable:
    """A box around an array that jnp functions, operators and indexing see through.

    ``_value`` is the array. ``_shared`` is set once the array has been handed out, so that a compiled step that donates
    its inputs gives a copy instead: nothing a user holds is ever deleted.
    """

    __slots__ = ("__weakref__", "_accumulate_hooks", "_grad", "_grad_hooks", "_requires_grad", "_shared", "_value")
    _value: Any
    _trains = False

    def __init__(self, data: Any = None, requires_grad: bool | None = None) -> None:
        data = unboxed(data)
        self._value = jnp.zeros((0,)) if data is None else data if isinstance(data, jax.ShapeDtypeStruct) else jnp.asarray(data)
        self._requires_grad = self._trains if requires_grad is None else bool(requires_grad)
        if self._requires_grad and not jnp.issubdtype(self._value.dtype, np.inexact):
            checks.fail(self, "only floating point and complex arrays can require gradients", RuntimeError, dtype=self._value.dtype)
        self._grad: Array | None = None
        self._shared = True
        self._grad_hooks, self._accumulate_hooks = Registry(), Registry()

    def register_hook(self, hook: Callable[[Array], Array | None]) -> RemovableHandle:
        """Call ``hook(gradient)`` when this variable's gradient is taken; what it returns replaces it."""
        return register(self._grad_hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Self], None]) -> RemovableHandle:
        """Call ``hook(variable)`` when ``jnn.backward`` has accumulated its ``grad``."""
        return register(self._accumulate_hooks, hook)

    @property
    def requires_grad(self) -> bool:
        """Whether training changes this array."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if bool(value) != self._requires_grad:
            self._requires_grad = bool(value)
            Version.bump()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set :attr:`requires_grad`; returns self."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self) -> Array | None:
        """The gradient that ``jnn.backward`` has accumulated."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = jnp.asarray(value)
            checks.require(
                value.shape == self.shape, self, "grad must have the shape of the parameter", RuntimeError, grad=value, data=self._value
            )
        self._grad = value

    @property
    def data(self) -> Self:
        """The variable itself: an in-place call on it or an assignment to it changes the value."""
        return self

    @data.setter
    def data(self, value: Any) -> None:
        self._value, self._shared = jnp.asarray(unboxed(value)), True

    def detach(self) -> Array:
        """Today's value as a plain array."""
        self._shared = True
        return self._value

    clone = detach

    def numel(self) -> int:
        """The number of elements."""
        return int(self._value.size)

    def dim(self) -> int:
        """The number of dimensions."""
        return self._value.ndim

    def _write(self, value: Any) -> Self:
        """Take ``value`` in this variable's shape and dtype."""
        value = jnp.asarray(value)
        ok = value.ndim <= self.ndim and all(a in (1, b) for a, b in zip(value.shape[::-1], self.shape[::-1], strict=False))
        checks.require(ok, self, "an in-place change must keep the shape", RuntimeError, shape=self.shape, new=value.shape)
        self._value = jnp.broadcast_to(value, self.shape).astype(self.dtype)
        self._shared = True
        return self

    def _cast(self, dtype: Any, device: Any) -> None:
        """Convert in place: floating point and complex values to ``dtype``, all to ``device``."""
        for field in ("_value", "_grad"):
            value = getattr(self, field)
            if value is None:
                continue
            if dtype is not None and jnp.issubdtype(value.dtype, np.inexact):
                dtype = dtypes.canonical(self, dtype)
                value = jax.ShapeDtypeStruct(value.shape, dtype) if isinstance(value, jax.ShapeDtypeStruct) else value.astype(dtype)
            setattr(self, field, jax.device_put(value, device) if device is not None else value)
        self._shared = True

    def copy_(self, source: Any) -> Self:
        """Take the values of ``source``, broadcast and cast."""
        return self._write(source)

    def fill_(self, value: Any) -> Self:
        """Set every element to ``value``."""
        return self._write(value)

    def zero_(self) -> Self:
        """Set every element to zero."""
        return self._write(0)

    def uniform_(self, a: float = 0.0, b: float = 1.0, *, generator: Any = None) -> Self:
        """Draw every element from U(a, b); ``generator`` is a jax key."""
        return self._write(jax.random.uniform(rng.next_key(self, generator), self.shape, self.dtype, a, b))

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Self:
        """Draw every element from N(mean, std^2); ``generator`` is a jax key."""
        return self._write(mean + std * jax.random.normal(rng.next_key(self, generator), self.shape, self.dtype))

    def add_(self, other: Any, *, alpha: float = 1) -> Self:
        """Add ``alpha * other``."""
        return self._write(self._value + alpha * jnp.asarray(other))

    def sub_(self, other: Any, *, alpha: float = 1) -> Self:
        """Subtract ``alpha * other``."""
        return self._write(self._value - alpha * jnp.asarray(other))

    def mul_(self, other: Any) -> Self:
        """Multiply by ``other``."""
        return self._write(self._value * jnp.asarray(other))

    def div_(self, other: Any) -> Self:
        """Divide by ``other``."""
        return self._write(self._value / jnp.asarray(other))

    def clamp_(self, min: float | None = None, max: float | None = None) -> Self:
        """Limit every element to [min, max]."""
        return self._write(jnp.clip(self._value, min, max))

    __iadd__, __isub__, __imul__, __itruediv__ = add_, sub_, mul_, div_

    def __setitem__(self, index: Any, value: Any) -> None:
        self._write(self._value.at[index].set(jnp.asarray(value)))

    def __jax_array__(self) -> Array:
        self._shared = True
        return self._value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._value, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._shared = self._shared or name not in ("shape", "dtype", "ndim", "size")
        return getattr(self._value, name)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Any:
        return iter(self.detach())

    def __bool__(self) -> bool:
        return bool(self._value)

    def __float__(self) -> float:
        return float(self._value)

    def __int__(self) -> int:
        return int(self._value)

    def __index__(self) -> int:
        return operator.index(self._value)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        extra = ", requires_grad=True" if self._requires_grad else ""
        return f"{type(self).__name__} containing:\n{self._value!r}{extra}"

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(self.__getstate__())
        return new

    def __getstate__(self) -> tuple[Any, ...]:
        return self.detach(), self._requires_grad, self._grad

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._value, self._requires_grad, self._grad = state[:3]
        self._shared = True
        self._grad_hooks, self._accumulate_hooks = Registry(), Registry()


def _delegate(name: str) -> None:
    def method(self: Variable, *args: Any) -> Any:
        return getattr(self.detach(), name)(*map(unboxed, args))

    method.__name__ = name
    setattr(Variable, name, method)


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"]
for _name in (
    *(f"__{prefix}{name}__" for name in _BINARY for prefix in ("", "r")),
    *(f"__{name}__" for name in ["neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge", "getitem"]),
):
    _delegate(_name)


class Parameter(Variable):
    """An array that a Module registers as trained when it is assigned as an attribute.

    Args:
        data: the initial value.
        requires_grad: whether training changes it; a frozen one travels in ``buffers``.
    """

    __slots__ = ()
    _trains = True


class Buffer(Variable):
    """An array that a Module registers as state that is not trained when it is assigned as an attribute.

    Args:
        data: the initial value.
        persistent: whether it is part of ``state_dict``.
    """

    __slots__ = ("persistent",)

    def __init__(self, data: Any = None, *, persistent: bool = True) -> None:
        super().__init__(data)
        self.persistent = persistent

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self.persistent)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state)
        self.persistent = state[3]


def _unflatten(cls: type[Variable]) -> Any:
    def build(state: tuple[Any, ...], children: tuple[Any]) -> Variable:
        new = cls.__new__(cls)
        new.__setstate__((children[0], *state))
        return new

    return build


for _cls in (Parameter, Buffer):
    jax.tree_util.register_pytree_node(_cls, lambda v: ((v._value,), (v._requires_grad, None, *v.__getstate__()[3:])), _unflatten(_cls))


def factory_kwargs(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The ``device``, ``dtype`` and ``memory_format`` among a module's keyword arguments, and those under ``factory_kwargs``.

    Raises:
        TypeError: another keyword, or one given twice.
    """
    known = {"device", "dtype", "memory_format"}
    plain = dict(kwargs or {})
    inner = dict(plain.pop("factory_kwargs", {}))
    unknown, twice = sorted(plain.keys() - known), sorted(plain.keys() & inner.keys())
    checks.require(
        not unknown, "factory_kwargs", "only device, dtype, memory_format and factory_kwargs are taken", TypeError, unknown=unknown
    )
    checks.require(not twice, "factory_kwargs", "a keyword must be given once", TypeError, twice=twice)
    return inner | plain
