"""What a compiled call depends on: dicts and values whose change is counted."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Version:
    """A count of all structural edits of all modules, so that an unchanged model is recognised by one comparison."""

    count = 0

    @classmethod
    def bump(cls) -> None:
        cls.count += 1


class Registry(OrderedDict[Any, Any]):
    """An ordered dict that counts its edits."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        Version.bump()

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        Version.bump()

    def clear(self) -> None:
        super().clear()
        Version.bump()

    def pop(self, *args: Any) -> Any:
        Version.bump()
        return super().pop(*args)

    def move_to_end(self, key: Any, last: bool = True) -> None:
        super().move_to_end(key, last)
        Version.bump()
