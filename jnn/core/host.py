"""Large arrays between files, host memory and devices: each byte is copied once, and held once."""

from __future__ import annotations

import mmap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64
_LARGE = 1 << 20


class FileMap(mmap.mmap):
    """A file mapped for reading only, whose pages can be let go of at any time."""


def _fresh_memory(size: int) -> np.ndarray:
    # numpy asks for huge pages for large arrays; where memory is fragmented, finding them takes several times as long as copying.
    if size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(size, np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    memory = _fresh_memory(array.nbytes + _ALIGNMENT)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _release(array: np.ndarray) -> None:
    """Let go of the memory that holds the pages of a mapped array; they are read again when they are used."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if isinstance(base, FileMap) and array.nbytes >= mmap.PAGESIZE and hasattr(mmap, "MADV_DONTNEED"):
        first = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
        start = first // mmap.PAGESIZE * mmap.PAGESIZE
        base.madvise(mmap.MADV_DONTNEED, start, min(first + array.nbytes, len(base)) - start)


def placed(array: np.ndarray, place: Any = None) -> jax.Array:
    """``array`` on a device or sharding, or where jax puts arrays; it shares no memory with ``array``."""
    devices = (place,) if isinstance(place, jax.Device) else place.device_set if place is not None else jax.local_devices()[:1]
    # On the CPU jax takes aligned memory as its own, be it that of a file.
    own = _aligned_copy(array) if any(device.platform == "cpu" for device in devices) else array
    result = jax.block_until_ready(jax.device_put(own, place))
    _release(array)
    return result


def copied(value: Any, dtype: Any = None) -> jax.Array:
    """``jnp.array(value, dtype)``, a large numpy array by the shortest way."""
    plain = isinstance(value, np.ndarray) and value.nbytes >= _LARGE and dtype in (None, value.dtype)
    if (
        plain
        and value.dtype.isnative
        and jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype
        and jax.config.jax_default_device is None  # type: ignore[attr-defined]
    ):
        return placed(value)
    return jnp.array(value, dtype=dtype)
