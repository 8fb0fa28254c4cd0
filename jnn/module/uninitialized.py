"""Parameters and buffers whose shape is not known yet."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.spec import find_device
from .parameter import Buffer, Parameter, Variable
from .registry import Version


@dataclasses.dataclass(frozen=True)
class Unknown:
    """What a variable holds in place of an array of unknown shape."""

    dtype: np.dtype
    device: Any


class UninitializedVariable(Variable):
    """A variable that becomes another class when it gets its first value, and can be moved and cast until then."""

    __slots__ = ()
    cls_to_become: ClassVar[type[Variable]]

    def materialize(self, shape: tuple[int, ...], device: Any = None, dtype: Any = None) -> None:
        """Become an array of zeros, of this shape, where and what it was asked to be unless said otherwise."""
        self._cast(dtype, device)
        with jax.ensure_compile_time_eval():
            self._become(jnp.zeros(shape, self.dtype))

    def _become(self, value: Any) -> None:
        place: Unknown = self._value
        if place.device == "meta":
            self._value = jax.ShapeDtypeStruct(value.shape, place.dtype)
        else:
            device = None if place.device is None else find_device(self, place.device)
            self._value = jax.device_put(value.astype(place.dtype), device)
        object.__setattr__(self, "__class__", self.cls_to_become)
        Version.bump()

    def _cast(self, dtype: Any, device: Any) -> None:
        place: Unknown = self._value
        self._value = Unknown(place.dtype if dtype is None else dtypes.canonical(self, dtype), place.device if device is None else device)

    def _unknown(self, *args: Any, **kwargs: Any) -> NoReturn:
        checks.fail(self, "its values are not known yet; call the model once on an example, or load a state_dict", ValueError)

    detach = clone = numel = dim = _write = __jax_array__ = __array__ = __len__ = __bool__ = _unknown

    @property
    def shape(self) -> tuple[int, ...]:
        checks.fail(self, "its shape is not known yet; call the model once on an example, or load a state_dict", RuntimeError)

    @property
    def dtype(self) -> np.dtype:
        """The dtype it will have."""
        return self._value.dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._unknown()

    def __getstate__(self) -> tuple[Any, ...]:
        return self._value, self._requires_grad, None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class UninitializedParameter(Parameter, UninitializedVariable):
    """A parameter whose shape is not known yet.

    Args:
        requires_grad: whether training will change it.
        device: where it will live.
        dtype: what it will hold; float32 when None.
    """

    __slots__ = ()
    cls_to_become = Parameter

    def __init__(self, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(None, requires_grad)
        self._value = Unknown(dtypes.parameter(self, dtype), device)


class UninitializedBuffer(Buffer, UninitializedVariable):
    """A buffer whose shape is not known yet.

    Args:
        requires_grad: accepted; buffers are not trained.
        device: where it will live.
        dtype: what it will hold; float32 when None.
        persistent: whether it is part of ``state_dict``.
    """

    __slots__ = ()
    cls_to_become = Buffer

    def __init__(self, requires_grad: bool = False, device: Any = None, dtype: Any = None, persistent: bool = True) -> None:
        super().__init__(persistent=persistent)
        self._value = Unknown(dtypes.parameter(self, dtype), device)


# So that jax functions refuse them in the same words.
for _cls in (UninitializedParameter, UninitializedBuffer):
    jax.tree_util.register_pytree_node(_cls, _cls._unknown, _cls)  # type: ignore[arg-type]


def is_lazy(param: Any) -> bool:
    """Whether ``param`` is a parameter or buffer whose shape is not known yet."""
    return isinstance(param, UninitializedVariable)
