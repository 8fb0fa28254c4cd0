"""Nested dicts of arrays and their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": x}}`` to ``{"a.b": x}``, in the tree's order."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """``{"a.b": x}`` to ``{"a": {"b": x}}``."""
    tree: Tree = {}
    for path, value in flat.items():
        *outer, name = path.split(".")
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def copy(tree: Mapping[str, Any]) -> Tree:
    """New dicts, the same leaves."""
    return {name: copy(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
