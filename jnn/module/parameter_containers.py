"""Lists and dicts of parameters, which a Module sees."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, KeysView, Mapping
from typing import Any, Self

import jax
import numpy as np

from ..core import checks
from .module import Module
from .parameter import Parameter, Variable
from .registry import Registry

# The names of torch's tensor types.
_TYPES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}
_TYPES |= {"complex64": "ComplexFloat", "complex128": "ComplexDouble", "bool": "Bool"}
_TYPES |= {"uint8": "Byte", "int8": "Char", "int16": "Short", "int32": "Int", "int64": "Long"}


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, Variable))


def _held(value: Any) -> Any:
    """``value`` as it is kept: an array as a Parameter, anything else unchanged."""
    return Parameter(value) if _is_array(value) and not isinstance(value, Parameter) else value


def _typename(value: Any) -> str:
    name = np.dtype(value.dtype).name
    return f"torch.{_TYPES.get(name, name)}Tensor"


def _describe(items: Iterable[tuple[Any, Any]], kind: Any) -> str:
    """torch's lines of a container's repr; ``kind`` names the type of an array."""

    def line(value: Any) -> str:
        if not _is_array(value):
            return f"Object of type: {type(value).__name__}"
        what = "Parameter" if isinstance(value, Parameter) else "Tensor"
        return f"{what} containing: [{kind(value)} of size {'x'.join(map(str, value.shape))}]"

    return "\n".join(f"  ({name}): {line(value)}" for name, value in items)


class ParameterList(Module):
    """Parameters by position, and whatever else is put between them.

    Arrays become Parameters, called "0", "1", ...; other objects are kept as they are.

    Args:
        values: what the list holds at first.
    """

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def _name(self, index: Any) -> str:
        position, n = operator.index(index), len(self)
        checks.require(-n <= position < n, self, "index out of range", IndexError, index=position, length=n)
        return str(position % n)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)().extend(self[i] for i in range(*index.indices(len(self))))
        return getattr(self, self._name(index))

    def __setitem__(self, index: int, param: Any) -> None:
        setattr(self, self._name(index), _held(param))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __iadd__(self, parameters: Iterable[Any]) -> Self:
        return self.extend(parameters)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]

    def append(self, value: Any) -> Self:
        """Add a value at the end; returns self."""
        setattr(self, str(self._size), _held(value))
        self._size += 1
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Add values at the end; returns self."""
        ok = isinstance(values, Iterable) and not _is_array(values)
        checks.require(ok, self, "extend takes an iterable that is not an array", TypeError, values=type(values))
        for value in list(values):
            self.append(value)
        return self

    def extra_repr(self) -> str:
        return _describe(enumerate(self), lambda value: f"torch.{np.dtype(value.dtype).name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        checks.fail(self, "a list of parameters cannot be called", RuntimeError)


class ParameterDict(Module):
    """Parameters by name, and whatever else is put between them, in the order in which they came.

    Arrays become Parameters; other objects are kept as they are.

    Args:
        parameters: what the dict holds at first: a mapping, or pairs of name and value. A mapping other than an
            OrderedDict or a ParameterDict is taken in the order of its names, as in torch.
    """

    def __init__(self, parameters: Any = None) -> None:
        super().__init__()
        self._keys = Registry()
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        checks.require(isinstance(key, str), self, "keys must be strings", TypeError, key=key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        checks.require(isinstance(key, str), self, "keys must be strings", TypeError, key=key)
        setattr(self, key, _held(value))
        self._keys[key] = None

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._keys.keys()

    def items(self) -> Iterable[tuple[str, Any]]:
        """The names and values."""
        return ((key, self[key]) for key in self._keys)

    def values(self) -> Iterable[Any]:
        """The values."""
        return (self[key] for key in self._keys)

    def get(self, key: str, default: Any = None) -> Any:
        """The value called ``key``, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 - this is what get does

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value called ``key``, which becomes ``default`` if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str) -> Any:
        """Take a value out and return it."""
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Take the last name and value out and return them."""
        checks.require(len(self) > 0, self, "it is empty", KeyError)
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        """Take everything out."""
        for key in [*self._keys]:
            del self[key]

    def copy(self) -> ParameterDict:
        """Another ParameterDict of the same Parameters."""
        return ParameterDict(OrderedDict(self.items()))

    def fromkeys(self, keys: Iterable[str], default: Any = None) -> ParameterDict:
        """A new ParameterDict with these names, each with the value ``default``."""
        return ParameterDict([(key, default) for key in keys])

    def update(self, parameters: Any) -> None:
        """Add values, replacing those of the same names; see the constructor."""
        checks.require(isinstance(parameters, Iterable), self, "update takes a mapping or pairs", TypeError, parameters=type(parameters))
        if isinstance(parameters, (OrderedDict, ParameterDict)):
            parameters = parameters.items()
        elif isinstance(parameters, Mapping):
            parameters = sorted(parameters.items())
        for position, pair in enumerate(list(parameters)):
            checks.require(isinstance(pair, Iterable), self, "update takes pairs", TypeError, position=position, item=type(pair))
            pair = tuple(pair)
            checks.require(len(pair) == 2, self, "update takes pairs", ValueError, position=position, length=len(pair))
            self[pair[0]] = pair[1]

    def extra_repr(self) -> str:
        return _describe(self.items(), _typename)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        checks.fail(self, "a dict of parameters cannot be called", RuntimeError)

    def __or__(self, other: ParameterDict) -> ParameterDict:
        new = self.copy()
        new.update(other)
        return new

    def __ror__(self, other: ParameterDict) -> ParameterDict:
        new = other.copy()
        new.update(self)
        return new

    def __ior__(self, other: ParameterDict) -> Self:
        self.update(other)
        return self
