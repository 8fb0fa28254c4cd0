"""torch's two file formats: the zip archive of torch 1.6 and later, and the pickles in a row before it."""

from __future__ import annotations

import itertools
import struct
import sys
import zipfile
import zlib
from typing import Any

import numpy as np

from .dtypes import swapped
from .errors import refuse, require
from .memory_map import MemoryMap
from .torch_objects import Builder, Scanner

MAGIC = 0x1950A86A20F9469CFC6C
_PICKLED_MAGIC = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Archive:
    """The entries of a zip file, each a stretch of the map; nothing is unpacked.

    Raises:
        CheckpointError: an entry is compressed, encrypted or twice there, has a name that leads elsewhere, or overlaps another.
    """

    def __init__(self, file: MemoryMap) -> None:
        self._file = file
        try:
            with zipfile.ZipFile(file.mapping) as archive:  # type: ignore[arg-type]  # a map reads as a file
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, LookupError, ValueError, OverflowError, OSError, struct.error) as error:
            refuse("load", f"the zip archive is damaged ({error})", path=file.path)
        self.infos = {info.filename: info for info in infos}
        require(len(self.infos) == len(infos), "load", "the names in a zip archive must differ", path=file.path)
        self._starts = {name: self._start(info) for name, info in self.infos.items()}
        self._require_apart()

    def _start(self, info: zipfile.ZipInfo) -> int:
        name = info.filename
        away = name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/")
        require(not away, "load", "a name in a zip archive must lie within it", name=name)
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size and not info.flag_bits & 0x41
        require(stored, "load", "the entries of torch's archives are neither compressed nor encrypted", name=name)
        at = info.header_offset
        require(0 <= at <= len(self._file) - _LOCAL_HEADER.size, "load", "an entry must lie within the file", name=name)
        signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack_from(self._file.mapping, at)
        at += _LOCAL_HEADER.size
        own = bytes(self._file.mapping[at : at + name_length])
        same = signature == b"PK\x03\x04" and own == info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        require(same, "load", "an entry must have the name that the archive's directory gives it", name=name)
        start = at + name_length + extra_length
        require(start + info.file_size <= len(self._file), "load", "an entry must lie within the file", name=name)
        return start

    def _require_apart(self) -> None:
        spans = sorted((info.header_offset, self._starts[name] + info.file_size, name) for name, info in self.infos.items())
        for (_, end, _), (start, _, name) in itertools.pairwise(spans):
            require(end <= start, "load", "the entries of a zip archive must not overlap", name=name)

    def stretch(self, name: str) -> tuple[int, int]:
        """First byte and number of bytes of an entry."""
        info = self.infos.get(name)
        if info is None:
            refuse("load", "the archive lacks an entry", name=name, path=self._file.path)
        return self._starts[name], info.file_size

    def content(self, name: str) -> bytes:
        """The bytes of a small entry, checked."""
        start, size = self.stretch(name)
        self.check(name)
        return bytes(self._file.mapping[start : start + size])

    def check(self, name: str) -> None:
        """Compare an entry with its checksum, if the archive was written with one."""
        start, size = self.stretch(name)
        wanted = self.infos[name].CRC
        found = zlib.crc32(memoryview(self._file.mapping)[start : start + size]) if wanted else 0
        require(found == wanted, "load", "an entry must have the checksum that the archive gives it", name=name, path=self._file.path)


class _ZipStorages:
    def __init__(self, file: MemoryMap, archive: Archive, root: str, foreign: bool) -> None:
        self._file, self._archive, self._root, self._foreign = file, archive, root, foreign

    def find(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        name = f"{self._root}/data/{key}"
        start, size = self._archive.stretch(name)
        require(
            count * dtype.itemsize <= size, "load", "a storage must have the size the pickle says", name=name, elements=count, bytes=size
        )
        array = self._file.array(dtype, start, count, name)
        return swapped(array) if self._foreign else array


def read_zip(file: MemoryMap, verify: bool) -> Any:
    """What ``torch.save`` has written since 1.6."""
    archive = Archive(file)
    roots = [name.removesuffix("/data.pkl") for name in archive.infos if name.endswith("/data.pkl") and name.count("/") == 1]
    require(len(roots) == 1, "load", "this zip archive is not one of torch's: it must have one data.pkl", path=file.path, found=len(roots))
    root = roots[0]
    scripted = any(name == f"{root}/constants.pkl" or name.startswith(f"{root}/code/") for name in archive.infos)
    require(
        not scripted, "load", "this is a TorchScript program; save its state_dict: torch.save(module.state_dict(), path)", path=file.path
    )
    order = archive.content(f"{root}/byteorder").decode("latin1") if f"{root}/byteorder" in archive.infos else "little"
    require(order in ("little", "big"), "load", "the byte order must be little or big", byteorder=order)
    if verify:
        for name in archive.infos:
            archive.check(name)
    builder = Builder(_ZipStorages(file, archive, root, order != sys.byteorder))
    return builder.read(archive.content(f"{root}/data.pkl"))[0]


class _LegacyStorages:
    def __init__(self, file: MemoryMap, foreign: bool) -> None:
        self._file, self._foreign = file, foreign
        self.places: dict[str, tuple[int, int]] = {}

    def find(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        require(key in self.places, "load", "the file lacks a storage", storage=key)
        start, held = self.places[key]
        require(count <= held, "load", "a storage must have the size the pickle says", storage=key, elements=count, held=held)
        array = self._file.array(dtype, start, count, f"storage {key}")
        return swapped(array) if self._foreign else array


def is_legacy(file: MemoryMap) -> bool:
    """Whether a file begins as the older format does, in any protocol of pickles."""
    start = bytes(file.mapping[:32])
    return (start[:1] == b"\x80" and _PICKLED_MAGIC in start) or start.startswith(f"L{MAGIC}L\n.".encode())


def read_legacy(file: MemoryMap) -> Any:
    """What ``torch.save`` wrote before 1.6, and writes today when it is told not to use the zip format."""
    data, scanner = memoryview(file.mapping), Scanner()
    magic, at = scanner.read(data)
    protocol, at = scanner.read(data, at)
    system, start = scanner.read(data, at)
    require(magic == MAGIC and protocol == _PROTOCOL, "load", "the file is none of torch's", path=file.path)
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    _, at = scanner.read(data, start)
    keys, at = scanner.read(data, at)
    sound = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    require(sound, "load", "the names of the storages must be a list of strings", found=type(keys))
    storages = _LegacyStorages(file, bool(little) != (sys.byteorder == "little"))
    for key in keys:
        require(key in scanner.dtypes and key not in storages.places, "load", "a storage must be there once, and be used", storage=key)
        count = int(file.array(np.dtype("<i8"), at, 1, "the size of a storage")[0])
        at += 8
        require(count >= 0, "load", "a storage must have a size", storage=key, elements=count)
        storages.places[key] = at, count
        at += count * scanner.dtypes[key].itemsize
    require(at <= len(file), "load", "the file ends early", path=file.path, wanted=at, bytes=len(file))
    return Builder(storages).read(data, start)[0]
