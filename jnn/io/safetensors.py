"""The safetensors format: a length, a header in JSON, and the arrays in a row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .dtypes import NAMES, SAFETENSORS
from .errors import refuse, require
from .memory_map import MemoryMap

_LONGEST_HEADER = 100_000_000  # the format's own bound


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """An object in JSON whose names differ."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        require(len(found) == len(pairs), "load", f"the names in {what} must differ")
        return found

    try:
        value = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        refuse("load", f"{what} is no JSON ({type(error).__name__})")
    require(isinstance(value, dict), "load", f"{what} must be an object in JSON")
    return value


def is_safetensors(file: MemoryMap) -> bool:
    """Whether a file begins as one of this format does."""
    return len(file) > 8 and file.mapping[8:9] == b"{"


def read_safetensors(file: MemoryMap) -> dict[str, np.ndarray]:
    """The arrays by name, in the order of the header."""
    length = int.from_bytes(file.mapping[:8], "little")
    fits = length <= min(_LONGEST_HEADER, len(file) - 8)
    require(fits, "load", "the header must lie within the file", header=length, bytes=len(file), path=file.path)
    entries = parse_json(file.mapping[8 : 8 + length], "the header")
    entries.pop("__metadata__", None)
    arrays = {name: _array(file, 8 + length, name, entry) for name, entry in entries.items()}
    at = 0
    for begin, end in sorted(tuple(entry["data_offsets"]) for entry in entries.values()):
        require(begin == at, "load", "the arrays must follow one another, without gap or overlap", start=begin, expected=at)
        at = end
    require(8 + length + at == len(file), "load", "the file must end with its last array", end=8 + length + at, bytes=len(file))
    return arrays


def _array(file: MemoryMap, base: int, name: str, entry: Any) -> np.ndarray:
    require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}, "load", "an entry is damaged", name=name)
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = SAFETENSORS.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        refuse("load", "numpy has no such dtype", name=name, dtype=kind)
    sizes = all(isinstance(part, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in part) for part in (shape, offsets))
    require(sizes and len(offsets) == 2 and len(shape) <= 64, "load", "shape and offsets must be sizes", name=name)
    count = math.prod(shape)
    fits = offsets[1] - offsets[0] == count * dtype.itemsize
    require(fits, "load", "an array must have the size its shape says", name=name, shape=shape, offsets=offsets)
    if not count:
        require(math.prod(n for n in shape if n) < 1 << 58, "load", "an array is too large", name=name, shape=shape)
        return np.empty(shape, dtype)
    return file.array(dtype, base + offsets[0], count, name).reshape(shape)


def write_safetensors(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Write contiguous arrays by name.

    Raises:
        CheckpointError: the format has no such dtype.
    """
    from safetensors.numpy import save_file  # an extra

    for name, array in arrays.items():
        names = NAMES.get(array.dtype)
        known = names is not None and names.safetensors is not None
        require(known, "save", "safetensors has no such dtype; save to a .pt file", name=name, dtype=array.dtype)
    # Without this torch's loaders ask what framework wrote the file.
    save_file(dict(arrays), path, metadata={"format": "pt"})
