"""jnn over torch's own test databases: every module and function, in float64 and float32, and every bad input.

There are about 9,500 cases in each dtype, most of them a compilation of their own. Of each name an even selection is run;
``pytest tests/test_torch_databases.py --every-case`` runs all.
"""

from __future__ import annotations

import traceback
import warnings

import pytest
import torch

import jnn

from . import torch_databases as db

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


# How many cases of a name are run without --every-case.
SELECTION = {torch.float64: 3, torch.float32: 2}


def selected(cases, dtype, every_case):
    """All cases, or an even selection that includes the first and the last."""
    cases = list(cases)
    most = SELECTION[dtype]
    if every_case or len(cases) <= most:
        return cases
    return [cases[i * (len(cases) - 1) // (most - 1)] for i in range(most)]


def check_all(cases):
    """Run all cases, then fail once with every failure named."""
    failed, count = [], 0
    for description, check in cases:
        count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's databases exercise deprecated arguments
                check()
        except Exception as error:
            failed.append(f"{description}: {type(error).__name__}: {str(error).strip()[:400]}")
    assert count, "the database has no case"
    assert not failed, f"{len(failed)} of {count} cases\n" + "\n".join(failed[:5])


@pytest.fixture
def compilation(dtype, request):
    """float32 is run as users run it; for the greater number of cases in float64 compiling is most of the time."""
    if dtype == torch.float64:
        request.getfixturevalue("quick_compilation")


@DTYPES
@pytest.mark.usefixtures("compilation")
@pytest.mark.parametrize("name", db.MODULES)
def test_module(name, dtype, pytestconfig):
    check_all(selected(db.module_cases(db.MODULES[name], dtype), dtype, pytestconfig.getoption("--every-case")))


@DTYPES
@pytest.mark.usefixtures("compilation")
@pytest.mark.parametrize("name", db.FUNCTIONS)
def test_function(name, dtype, pytestconfig):
    check_all(selected(db.function_cases(name, dtype), dtype, pytestconfig.getoption("--every-case")))


def _refuse(call):
    """The call must be refused by jnn itself, in words."""
    try:
        call()
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert last.startswith(jnn.__path__[0]), f"refused outside jnn, in {last}: {error}"
        assert ": " in str(error)
    else:
        pytest.fail("accepted")


def test_bad_inputs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_all((description, lambda c=call: _refuse(c)) for description, call in db.error_cases())
