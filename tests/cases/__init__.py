"""The table: every layer and loss, with arguments and inputs that cover what it does. One file per family.

A row is a ``Case``. Every property test of the suite runs over every row.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], Any]


def normal(*shape: int, scale: float = 1.0) -> Draw:
    """Standard normal float64 values."""
    return lambda rng: scale * rng.standard_normal(shape)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    """Uniform float64 values."""
    return lambda rng: rng.uniform(low, high, shape)


def ints(high: int, *shape: int, low: int = 0) -> Draw:
    """Uniform int64 values in [low, high)."""
    return lambda rng: rng.integers(low, high, shape)


def value(x: Any) -> Draw:
    """A fixed value: an array, or anything that is passed as it is (None, a tuple of ints)."""
    return lambda rng: x


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to construct and call a layer.

    ``args``/``kwargs`` construct it (arrays among them as numpy arrays), ``inputs``/``call`` are drawn and call it. Float
    inputs are differentiated. ``random``: outputs in training mode are drawn, and compared by shape and dtype only.
    ``unlike``: properties that do not hold for this row, by test name, each with its reason; they are counted.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: tuple[Draw, ...] = ()
    call: Mapping[str, Draw] = dataclasses.field(default_factory=dict)
    random: bool = False
    unlike: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        shown = [*map(_short, self.args), *(f"{k}={_short(v)}" for k, v in self.kwargs.items())]
        return f"{self.name}({','.join(shown)})"


def _short(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return f"array{list(x.shape)}"
    return getattr(x, "__name__", None) or str(x).replace(" ", "")


def _all_cases() -> list[Case]:
    files = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return [case for name in files for case in importlib.import_module(f"{__name__}.{name}").CASES]


CASES: list[Case] = []


def cases() -> list[Case]:
    """All rows."""
    if not CASES:
        CASES.extend(_all_cases())
    return CASES
