"""The catalogue is complete: every layer has its twin, its documentation, its row, and torch's signature."""

from __future__ import annotations

import inspect

import pytest
import torch

import jnn
from jnn import layers, losses
from jnn.core.spec import Layer

from .cases import cases

SPECS = {n: o for space in (layers, losses) for n, o in vars(space).items() if inspect.isclass(o) and issubclass(o, Layer)}
TWINS = {n: o for n, o in vars(jnn).items() if inspect.isclass(o) and issubclass(o, jnn.Module)}
CONTAINERS = {"Module", "Container", "DataParallel", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"}
# They become other layers at their first call; tests/test_lazy.py has them.
LAZY = {name for name in SPECS if name.startswith("Lazy")}
# Constructor arguments of torch's classes that are private to torch, and so not promised.
PRIVATE = {"self", "_weight", "_freeze", "_random_samples", "_stacklevel"}


def _arguments(of):
    found = inspect.signature(of).parameters.values()
    return {p.name: p.default for p in found if p.name not in PRIVATE}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_layer_has_its_twin_documentation_and_row(name):
    assert name in TWINS, "no stateful twin"
    assert jnn.Module._twins[SPECS[name]] is TWINS[name]
    assert (SPECS[name].__doc__ or "").strip()
    assert name in CONTAINERS | LAZY or any(case.name == name for case in cases()), "no row in the table"


@pytest.mark.parametrize("name", sorted(TWINS.keys() - CONTAINERS))
def test_signatures_are_torchs(name):
    theirs = getattr(torch.nn, name, None) or getattr(torch.nn.modules.linear, name)
    mine, expected = _arguments(TWINS[name]), _arguments(theirs)
    if not {"args", "kwargs"} & expected.keys():
        assert [n for n in mine if n in expected] == [*expected]
        defaults = {n: mine[n] for n in expected}
        assert {n: getattr(d, "__name__", d) for n, d in defaults.items()} == {n: getattr(d, "__name__", d) for n, d in expected.items()}


@pytest.mark.parametrize("name", sorted(TWINS.keys() - CONTAINERS))
def test_forward_takes_torchs_arguments(name):
    theirs = getattr(torch.nn, name, None) or getattr(torch.nn.modules.linear, name)
    call = TWINS[name].forward if "forward" in vars(TWINS[name]) else getattr(TWINS[name], "compute", TWINS[name].forward)
    mine = [n for n in inspect.signature(call).parameters if n not in ("self", "s")]
    assert mine[: len(expected := [n for n in inspect.signature(theirs.forward).parameters if n != "self"])] == expected


@pytest.mark.parametrize("name", [n for n in dir(jnn.functional) if callable(getattr(jnn.functional, n)) and not n.startswith("_")])
def test_functions_have_torchs_arguments_and_documentation(name):
    mine = getattr(jnn.functional, name)
    assert (mine.__doc__ or "").strip()
    try:
        expected = [n for n in inspect.signature(getattr(torch.nn.functional, name)).parameters if n not in PRIVATE]
    except ValueError:  # a builtin has no signature
        return
    if expected not in (["args", "kwargs"], ["kwargs"]):
        assert [n for n in inspect.signature(mine).parameters if n in expected] == expected
