"""``load_into``: a file's arrays into a module, with a report."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..module.module import Module
from .errors import CheckpointError, require
from .reading import Path, load

Rename = Mapping[str, str] | Callable[[str], str | None]


class LoadReport(NamedTuple):
    """What became of the names of a checkpoint; ``str`` gives it in lines."""

    loaded: list[str]
    """Names of the module that have the file's values."""
    missing: list[str]
    """Names of the module that the file lacks; they keep their values."""
    unexpected: list[str]
    """Names, after ``prefix`` and ``rename``, that the module lacks."""
    left_out: list[str]
    """Names of the file that do not begin with ``prefix``, or that ``rename`` drops."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded"]
        for field in ("missing", "unexpected", "left_out"):
            names = getattr(self, field)
            lines.append(f"{len(names)} {field.replace('_', ' ')}" + (": " + ", ".join(names) if names else ""))
        return "\n".join(lines)


def load_into(
    module: Module,
    path: Path | Mapping[str, Any],
    strict: bool = True,
    prefix: str = "",
    rename: Rename | None = None,
    *,
    assign: bool = False,
    verify: bool = False,
) -> LoadReport:
    """Load parameters and buffers from a file.

    Args:
        module: what is loaded into, in its own dtypes and on its own devices.
        path: a file that :func:`load` reads, or what it gave.
        strict: whether names that are missing or unexpected are an error. A shape that differs always is.
        prefix: take the names that begin with this, without it: ``"module."`` for the state of a DataParallel,
            ``"model."`` for that of ``{"model": state_dict, "epoch": 3}``, ``"model.module."`` for both.
        rename: regular expressions and what replaces their matches, in turn, or a function of a name, which drops those
            for which it returns None. Applied after ``prefix``.
        assign: take the file's dtypes, too, as in ``load_state_dict``; a module made on the meta device needs it.
        verify: see :func:`load`.

    Raises:
        RuntimeError: names or shapes do not fit; all are named, and the module is unchanged.
        CheckpointError: which is one, see :func:`load`; or no name fits at all, and then prefixes that would are named.
    """
    require(isinstance(module, Module), load_into.__name__, "module must be a Module", module=type(module))
    value = load(path, verify=verify) if isinstance(path, (str, os.PathLike)) else path
    require(isinstance(value, Mapping), load_into.__name__, "the file must hold a dict", found=type(value))
    chosen, versions, left_out = _select(value, prefix)
    state = _State()
    for name, array in chosen.items():
        new = _renamed(name, rename)
        if new is None:
            left_out.append(prefix + name)
            continue
        require(new not in state, load_into.__name__, "two names must not become one", name=new)
        state.put(new, array, name, versions)
    _require_some(module, value, state, prefix)
    report = module.load_state_dict(state, strict=strict, assign=assign)
    unexpected = set(report.unexpected_keys)
    loaded = [name for name in state if name not in unexpected]
    return LoadReport(loaded, report.missing_keys, report.unexpected_keys, left_out)


class _State(OrderedDict[str, Any]):
    """A state_dict with the versions of the modules that its names are of."""

    def __init__(self) -> None:
        super().__init__()
        self._metadata: dict[str, Any] = {}

    def put(self, name: str, value: Any, old: str, versions: Mapping[str, Any]) -> None:
        """Add an entry that was called ``old``."""
        self[name] = value
        (path, _, leaf), (old_path, _, old_leaf) = name.rpartition("."), old.rpartition(".")
        if leaf == old_leaf and old_path in versions:
            self._metadata[path] = versions[old_path]


def _select(value: Mapping[Any, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The entries under ``prefix``, without it, the versions of their modules, and the names of the rest."""
    outer, left_out = "", []
    while not any(isinstance(name, str) and name.startswith(prefix) for name in value):
        inner = next(
            (n for n, item in value.items() if isinstance(n, str) and prefix.startswith(f"{n}.") and isinstance(item, Mapping)), None
        )
        if inner is None:
            break
        left_out += [f"{outer}{name}" for name in value if name != inner]
        value, prefix, outer = value[inner], prefix.removeprefix(f"{inner}."), f"{outer}{inner}."
    within = {name: None for name in value if isinstance(name, str) and name.startswith(prefix)}
    left_out += [f"{outer}{name}" for name in value if name not in within]
    metadata = getattr(value, "_metadata", None) or {}
    versions = {f"{path}."[len(prefix) :].removesuffix("."): entry for path, entry in metadata.items() if f"{path}.".startswith(prefix)}
    return {name.removeprefix(prefix): value[name] for name in within}, versions, left_out


def _renamed(name: str, rename: Rename | None) -> str | None:
    if rename is None:
        return name
    if not isinstance(rename, Mapping):
        return rename(name)
    for pattern, replacement in rename.items():
        name = re.sub(pattern, replacement, name)
    return name


def _require_some(module: Module, value: Mapping[Any, Any], state: Mapping[str, Any], prefix: str) -> None:
    """Refuse a file of which no name fits, and say which prefixes would."""
    own = {*module.state_dict(keep_vars=True)}
    if not own or own & state.keys():
        return
    fitting = [found for found in _prefixes(value, own) if found != prefix]
    advice = "; try " + " or ".join(f"prefix={found!r}" for found in fitting) if fitting else ""
    raise CheckpointError(f"load_into: no name fits {type(module).__name__}{advice}; the file has {_some(state)}, the module {_some(own)}")


def _prefixes(value: Mapping[Any, Any], own: set[str]) -> list[str]:
    """Prefixes under which a name of the module is found, to a depth of two dicts."""
    names = [name for name in value if isinstance(name, str)]
    for outer in tuple(names):
        if isinstance(value[outer], Mapping):
            names += [f"{outer}.{inner}" for inner in value[outer] if isinstance(inner, str)]
    found = {name.removesuffix(wanted) for wanted in sorted(own)[:1] + sorted(own)[-1:] for name in names if name.endswith(f".{wanted}")}
    return sorted(found)


def _some(names: Any) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") if listed else "none"
