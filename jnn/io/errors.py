"""What reading and writing files may raise."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import numpy as np

from ..core import checks

_LONGEST = 200


class CheckpointError(RuntimeError):
    """A file that cannot be read or written, with what is wrong with it."""


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _brief(value: Any) -> Any:
    """What a message shows of a value that may come from a hostile file: its repr could be endless."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
    if isinstance(value, int) and abs(value) >> 64:
        return _Shown("an integer of more than 64 bits")
    if isinstance(value, (tuple, list)):
        return _Shown("(" + ", ".join(repr(_brief(v)) if isinstance(v, (int, str)) else type(v).__name__ for v in value[:8]) + ")")
    if value is None or isinstance(value, (int, float, type, np.dtype, jax.Array, np.ndarray)):
        return value
    return _Shown(getattr(value, "name", None) or type(value).__name__)


def refuse(who: object, rule: str, **got: object) -> NoReturn:
    """Raise a CheckpointError in the library's format of messages."""
    checks.fail(who, rule, CheckpointError, **{name: _brief(value) for name, value in got.items()})


def require(ok: object, who: object, rule: str, **got: object) -> None:
    """``refuse`` unless ``ok``."""
    if not ok:
        refuse(who, rule, **got)
