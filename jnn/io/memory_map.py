"""Files as arrays that are read when they are used."""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Sequence

import numpy as np

from ..core.host import FileMap
from .errors import require


class MemoryMap:
    """The bytes of a file, mapped and never written; ``mapping`` reads as a file, ``bytes`` is an array of uint8.

    Raises:
        FileNotFoundError: and the other errors of opening a file.
        CheckpointError: the path is no regular file, or an empty one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        status = os.stat(self.path)
        require(stat.S_ISREG(status.st_mode), "load", "the path must be that of a file", path=self.path)
        require(status.st_size, "load", "the file is empty", path=self.path)
        with open(self.path, "rb") as file:
            self.mapping = FileMap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self.mapping, np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def array(self, dtype: np.dtype, start: int, count: int, what: str) -> np.ndarray:
        """``count`` numbers from byte ``start`` on, as a 1-D array that cannot be written."""
        sound = start >= 0 and count >= 0 and start + count * dtype.itemsize <= len(self)
        require(sound, "load", f"{what} must lie within the file", start=start, bytes=count * dtype.itemsize, file=len(self))
        array = self.bytes[start : start + count * dtype.itemsize].view(dtype)
        if dtype == np.bool_ and count:
            largest = int(self.bytes[start : start + count].max())
            require(largest < 2, "load", f"{what} must hold only 0 and 1, for its dtype is bool", value=largest)
        return array


def strided(storage: np.ndarray, offset: int, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A view of a 1-D array; offset and strides count elements.

    Raises:
        CheckpointError: it reaches outside.
    """
    numbers = (offset, *shape, *strides)
    sound = all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) and len(shape) == len(strides) <= 64
    require(sound, "load", "a tensor must have an offset, and sizes and strides of one length", offset=offset, size=shape, stride=strides)
    size = storage.dtype.itemsize
    count = math.prod(shape)
    if not count:
        require(math.prod(n for n in shape if n) * size < 1 << 62, "load", "a tensor is too large", size=tuple(shape))
        return np.empty(shape, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    require(
        last < storage.size, "load", "a tensor must lie within its storage", size=shape, stride=strides, last=last, storage=storage.size
    )
    view = np.ndarray(tuple(shape), storage.dtype, storage, offset * size, tuple(step * size for step in strides))
    view.flags.writeable = False
    return view
