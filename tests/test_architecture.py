"""Rules that a machine can hold: which way imports go, no torch, sizes."""

from __future__ import annotations

import ast
import pathlib

import pytest

import jnn

ROOT = pathlib.Path(jnn.__path__[0])
SOURCES = sorted(ROOT.rglob("*.py"))
LIBRARY = sorted(path for path in (ROOT / "kernels" / "csrc").iterdir() if path.suffix in (".cc", ".h"))
# Each package may import those before it, and itself.
ORDER = ["core", "kernels", "layers", "losses", "functional", "init", "module", "attention", "utils", "optim", "func", "parallel", "io"]


def _imports(path):
    package = path.relative_to(ROOT.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (f"{base}.{name}" if base else name for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 600
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name in _imports(path):
        assert name.split(".")[0] != "torch"
        if name.startswith("jnn.") and parts[0] != "__init__":
            assert ORDER.index(name.split(".")[1]) <= ORDER.index(parts[0]), f"{path} imports {name}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.name)
def test_the_librarys_files_stay_small(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 600
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < 50, f"{path}: {node.name}"
