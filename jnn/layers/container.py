"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax

from ..core import checks
from ..core.spec import Layer, format_tree, group_repeats, layer

Array = jax.Array


def _require_layers(who: object, named: Mapping[str, Any]) -> tuple[tuple[str, Layer], ...]:
    for name, part in named.items():
        checks.require(isinstance(part, Layer), who, "every part must be a pure layer", TypeError, **{str(name): type(part)})
        ok = isinstance(name, str) and name and "." not in name
        checks.require(ok, who, "a part's name must be a string without dots", KeyError, name=name)
    return tuple(named.items())


@layer
class _Named(Layer):
    """Base of the containers: layers by name."""

    named: tuple[tuple[str, Layer], ...]

    def _hold(self, named: Mapping[str, Layer]) -> None:
        self._set(named=_require_layers(self, named))
        self._configured()

    def parts(self) -> Mapping[str, Layer]:
        return dict(self.named)

    def __len__(self) -> int:
        return len(self.named)


class _Ordered(_Named):
    """Base of the containers that are sequences."""

    def __iter__(self) -> Iterator[Layer]:
        return (part for _, part in self.named)

    def __getitem__(self, index: int | slice) -> Any:
        return type(self)._of(dict(self.named[index])) if isinstance(index, slice) else self.named[index][1]

    @classmethod
    def _of(cls, named: Mapping[str, Layer]) -> Self:
        new = object.__new__(cls)
        new._hold(named)
        return new


@layer
class Sequential(_Ordered):
    """Its layers one after the other, each taking the output of the one before.

    Args:
        args: the layers, called "0", "1", ...; or one mapping of names to layers.
    """

    def __init__(self, *args: Any) -> None:
        named = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else {str(i): part for i, part in enumerate(args)}
        self._hold(named)

    def compute(self, s: Any, input: Any) -> Any:
        for part in s:
            input = part(input)
        return input


@layer
class ModuleList(_Ordered):
    """Layers by position, for a layer that calls them itself.

    Args:
        modules: the layers, called "0", "1", ...
    """

    def __init__(self, modules: Iterable[Layer] | None = None) -> None:
        self._hold({str(i): part for i, part in enumerate(modules or ())})

    def __repr__(self) -> str:
        return format_tree("ModuleList", "", group_repeats({name: repr(part) for name, part in self.named}))


@layer
class ModuleDict(_Named):
    """Layers by name, for a layer that calls them itself.

    Args:
        modules: a mapping of names to layers, or pairs of them.
    """

    def __init__(self, modules: Mapping[str, Layer] | Iterable[tuple[str, Layer]] | None = None) -> None:
        named: Any = modules or {}
        self._hold(dict(named))

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.named)

    def __getitem__(self, name: str) -> Layer:
        return dict(self.named)[name]
