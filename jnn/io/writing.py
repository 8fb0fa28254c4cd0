"""``save``: torch's zip format or safetensors, whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..core import tree
from .errors import CheckpointError, require
from .pickling import Pickler, is_array, to_numpy
from .safetensors import write_safetensors

_ALIGNMENT = 64
_ROOT = "archive"
_LOCAL_HEADER = 30
_ZIP64_FIELD = 20
_LARGE = 1 << 30


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write an object so that ``torch.load(path, weights_only=True)`` reads it, or arrays as safetensors.

    The file is written beside ``path``, synced and renamed: after a crash or on a full disk, ``path`` is what it was.

    Args:
        obj: arrays (of jax, on any device and in any sharding of this process, or numpy), Parameters, Buffers, numbers,
            strings, bytes, numpy dtypes, and dicts, OrderedDicts, lists, tuples and sets of them. What is one object
            comes back as one: tied weights stay tied. For safetensors a dict of arrays, nested ones joined with dots;
            tied weights are then written twice.
        path: a name that ends in ``.safetensors`` asks for that format, any other for torch's.

    Raises:
        CheckpointError: the object holds something else, or the file could not be written; ``path`` is then unchanged.

    Differs from torch: numpy arrays and scalars are saved as tensors.
    """
    if os.fspath(path).endswith(".safetensors"):
        arrays = _named_arrays(obj)
        with replacing(path) as beside:
            write_safetensors(arrays, beside)
        return
    pickler = Pickler()
    pickle = pickler.dump(obj)
    with replacing(path) as beside, open(beside, "wb") as file:
        _write_zip(file, pickle, pickler.storages)


def _named_arrays(obj: Any) -> dict[str, np.ndarray]:
    require(isinstance(obj, Mapping), "save", "safetensors holds a dict of arrays", found=type(obj))
    flat = tree.flatten(obj)
    for name, value in flat.items():
        sound = isinstance(name, str) and is_array(value)
        require(sound, "save", "safetensors holds arrays by name; save the rest to a .pt file", name=name, value=type(value))
    return {name: to_numpy(value) for name, value in flat.items()}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name beside ``path`` to write to, which takes its place once all is on the disk."""
    target = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(target)
    beside = None
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
        os.close(handle)
        yield beside
        _sync(beside)
        os.chmod(beside, os.stat(target).st_mode & 0o777 if os.path.exists(target) else 0o666 & ~_umask())
        os.replace(beside, target)
        _sync(folder)
    except BaseException as error:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            raise
        raise CheckpointError(f"save: {target} could not be written and is as it was: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_zip(file: Any, pickle: bytes, storages: list[Any]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: Any) -> None:
            # The data begins at a multiple of 64 bytes, as torch's does, so that mapped arrays are aligned.
            info = zipfile.ZipInfo(f"{_ROOT}/{name}")
            size = memoryview(data).nbytes
            large = size > _LARGE
            start = file.tell() + _LOCAL_HEADER + len(info.filename) + (_ZIP64_FIELD if large else 0) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            info.file_size = size
            with archive.open(info, "w", force_zip64=large) as entry:
                entry.write(data)

        put("data.pkl", pickle)
        put(".format_version", b"1")
        put(".storage_alignment", str(_ALIGNMENT).encode())
        put("byteorder", sys.byteorder.encode())
        for number, storage in enumerate(storages):
            put(f"data/{number}", to_numpy(storage).reshape(-1).view(np.uint8).data)
        put("version", b"3\n")
