"""Modules made of modules."""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from .. import layers
from ..core import checks
from ..core.spec import Layer, format_tree, group_repeats
from .module import Module


class _Ordered(Module):
    """Base of the containers that are sequences: submodules called "0", "1", ..."""

    @classmethod
    def _from_spec(cls, spec: Layer) -> Module:
        self = cls()
        for name, part in spec.parts().items():
            self.add_module(name, Module.from_spec(part))
        return self

    def _name(self, index: Any) -> str:
        position, n = operator.index(index), len(self._modules)
        checks.require(-n <= position < n, self, "index out of range", IndexError, index=position, length=n)
        return [*self._modules][position]

    def _refill(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        self._modules.clear()
        for module in modules:
            self.append(module)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self._modules[self._name(index)]
        new = type(self)()
        for name, module in self._kept([*self._modules.items()][index]):
            new.add_module(name, module)
        return new

    def _kept(self, items: list[tuple[str, Module]]) -> Iterable[tuple[str, Module]]:
        """The submodules of a slice under their names in it."""
        return ((str(i), module) for i, (_, module) in enumerate(items))

    def __setitem__(self, index: Any, module: Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: Any) -> None:
        doomed = {*[*self._modules][index]} if isinstance(index, slice) else {self._name(index)}
        self._refill(m for n, m in self._modules.items() if n not in doomed)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

    def __add__(self, other: Iterable[Module]) -> Self:
        new = type(self)()
        return new.extend(self).extend(other)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns self."""
        checks.require(isinstance(modules, Iterable), self, "extend takes an iterable of modules", TypeError, modules=type(modules))
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Add a module before ``index``."""
        checks.require(isinstance(module, Module), self, "only a Module can be inserted", TypeError, module=type(module))
        modules = [*self._modules.values()]
        n = len(modules)
        checks.require(-n <= index <= n, self, "index out of range", IndexError, index=index, length=n)
        modules.insert(index, module)
        self._refill(modules)
        return self

    def pop(self, key: int | slice) -> Any:
        """Take a module out and return it."""
        module = self[key]
        del self[key]
        return module


class Sequential(_Ordered):
    """Its modules one after the other, each taking the output of the one before.

    Args:
        args: the modules, called "0", "1", ...; or one OrderedDict of names to modules.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        named = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else {str(i): m for i, m in enumerate(args)}
        for name, module in named.items():
            self.add_module(name, module)

    def _kept(self, items: list[tuple[str, Module]]) -> Iterable[tuple[str, Module]]:
        return items

    def __add__(self, other: Iterable[Module]) -> Self:
        checks.require(isinstance(other, Sequential), self, "only a Sequential can be added", ValueError, other=type(other))
        return super().__add__(other)

    def __mul__(self, times: int) -> Self:
        return type(self)().extend([*self] * checks.integer(self, "times", times, 1))

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Self:
        return self.extend([*self] * (checks.integer(self, "times", times, 1) - 1))

    def forward(self, input: Any) -> Any:
        """The output of the last module."""
        for module in self:
            input = module(input)
        return input


class ModuleList(_Ordered):
    """Modules by position.

    Args:
        modules: the modules, called "0", "1", ...
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self.extend(modules or ())

    def __repr__(self) -> str:
        children = {name: repr(module) for name, module in self._modules.items()}
        return format_tree(self._get_name(), self.extra_repr(), group_repeats(children)) if children else f"{self._get_name()}()"


class Container(Module):
    """Deprecated, as in torch: a Module of named submodules. Subclass :class:`Module` instead."""

    def __init__(self, **kwargs: Module) -> None:
        super().__init__()
        warnings.warn("Container: deprecated, subclass Module instead", FutureWarning, stacklevel=2)
        for name, module in kwargs.items():
            self.add_module(name, module)


class ModuleDict(Module):
    """Modules by name.

    Args:
        modules: a mapping of names to modules, or pairs of them.
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    @classmethod
    def _from_spec(cls, spec: Layer) -> Module:
        return cls({name: Module.from_spec(part) for name, part in spec.parts().items()})

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Take all modules out."""
        self._modules.clear()

    def pop(self, key: str) -> Any:
        """Take a module out and return it."""
        return self._modules.pop(key)

    def keys(self) -> Any:
        """The names."""
        return self._modules.keys()

    def items(self) -> Any:
        """The names and modules."""
        return self._modules.items()

    def values(self) -> Any:
        """The modules."""
        return self._modules.values()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add modules, replacing those of the same names."""
        checks.require(isinstance(modules, Iterable), self, "update takes a mapping or pairs", TypeError, modules=type(modules))
        for name, module in OrderedDict(modules).items():
            self[name] = module


Module._twins |= {layers.Sequential: Sequential, layers.ModuleList: ModuleList, layers.ModuleDict: ModuleDict}
