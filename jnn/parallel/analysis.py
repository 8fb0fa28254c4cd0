"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}  # the others have theirs in their names
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_OPERATION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    bits = _BITS.get(dtype) or int(re.sub(r"^[a-z]+", "", dtype).partition("e")[0])
    return math.prod(shape) * bits // 8


def collectives(program: Any) -> list[Collective]:
    """The collective operations of a program, in its order.

    Operations that XLA has put together are one; one inside a loop is listed once.

    Args:
        program: what ``jax.jit(f).lower(...).compile()`` or ``step.lower(*batch).compile()`` gives, or its text.

    Returns:
        Each one's kind, the dtype and shape of the arrays that it gives on each device, and their bytes. What a device sends
        and receives follows from the algorithm: a ring of n devices moves 2 (n - 1) / n of the bytes of an all-reduce.
    """
    return list(_collectives(program if isinstance(program, str) else program.as_text()))


def _collectives(text: str) -> Iterator[Collective]:
    for line in text.splitlines():
        found = _OPERATION.search(line)
        if found:
            arrays = [(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(found["type"])]
            if found["start"] and found["kind"] != "all-reduce":  # which gives its operands too, before its results
                arrays = [a for a in arrays if a != ("u32", ())]
                arrays = arrays[len(arrays) // 2 :]
            yield Collective(found["kind"], tuple(arrays), sum(_size(*array) for array in arrays))
