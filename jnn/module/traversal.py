"""What a module tree holds, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self, cast

from ..core import checks
from .parameter import Buffer, Parameter

if TYPE_CHECKING:
    from .module import Module


class Traversal:
    """The part of Module that walks the tree."""

    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]

    def named_modules(self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """Every module of the tree with its dotted name, itself first under ``prefix``."""
        memo, me = set() if memo is None else memo, cast("Module", self)
        if me in memo:
            return
        if remove_duplicate:
            memo.add(me)
        yield prefix, me
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Every module of the tree, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules by name, each once."""
        seen: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def _named(self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, variable in getattr(module, registry).items():
                if variable is None or id(variable) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(variable))
                yield (f"{path}.{name}" if path else name), variable

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """The parameters by dotted name, each once: a tied one under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Buffer]]:
        """The buffers by dotted name, each once."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Buffer]:
        """The buffers, each once."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every submodule and then on the module itself; returns self."""
        for module in self.children():
            module.apply(fn)
        fn(cast("Module", self))
        return self

    def get_submodule(self, target: str) -> Module:
        """The submodule at a dotted path; ``""`` is the module itself."""
        module: Any = self
        for name in target.split(".") if target else ():
            module = getattr(module, name, None)
            checks.require(isinstance(module, Traversal), self, "no submodule there", AttributeError, target=target)
        return module

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put ``module`` at a dotted path, replacing a submodule; under ``strict`` there must be one to replace."""
        checks.require(target != "", self, "target must not be empty", ValueError)
        checks.require(isinstance(module, Traversal), self, "module must be a Module", ValueError, module=type(module))
        path, _, name = target.rpartition(".")
        parent = self.get_submodule(path)
        known = hasattr(parent, name)
        checks.require(known or not strict, self, "no submodule there to replace", AttributeError, target=target)
        checks.require(not known or isinstance(getattr(parent, name), Traversal), self, "not a submodule", AttributeError, target=target)
        setattr(parent, name, module)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._parameters.get(name)
        if found is None:
            checks.fail(self, "no parameter there", AttributeError, target=target)
        return found

    def get_buffer(self, target: str) -> Buffer:
        """The buffer at a dotted path."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._buffers.get(name)
        if found is None:
            checks.fail(self, "no buffer there", AttributeError, target=target)
        return found
