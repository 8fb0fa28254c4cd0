"""``load``: any of the formats, told apart by their first bytes."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np

from ..core import dtypes, host
from .errors import refuse, require
from .memory_map import MemoryMap
from .safetensors import is_safetensors, parse_json, read_safetensors
from .torch_files import is_legacy, read_legacy, read_zip

Path = str | os.PathLike[str]
_LARGEST_INDEX = 1 << 26


def load(path: Path, *, device: Any = None, verify: bool = False) -> Any:
    """What a file holds: one of ``torch.save`` (both formats), of safetensors, or the index of a sharded checkpoint.

    Nothing pickled is run: a file that refers to more than tensors and plain containers is refused. Tensors that share
    their storage and shape, as tied weights do, are one array; others that share a storage are views of it.

    Args:
        path: a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, or an ``.index.json`` beside its shards. The
            contents, not the name, tell the format.
        device: None leaves tensors as numpy arrays that cannot be written and are read from the file, which is mapped
            into memory, when they are used: the file must not be changed in place as long as they live. A jax device or
            sharding, or ``"cpu"``, makes jax arrays there, one at a time.
        verify: compare every entry of a zip archive with its checksum first, which reads all of the file.

    Returns:
        The saved object: dicts, OrderedDicts (with the ``_metadata`` of a ``state_dict``), lists, tuples, numbers, strings,
        and arrays. dtypes are numpy's, a device is its name, a tensor on the meta device a ``jax.ShapeDtypeStruct``.

    Raises:
        CheckpointError: the file is damaged, hostile, or holds what is refused; the message says which and what to do.
        FileNotFoundError: there is no such file.

    Differs from torch: the arguments of ``torch.load`` that choose devices and pickles are ``device`` alone; sparse and
    quantized tensors and other objects are refused.
    """
    value = _read(path, verify)
    return value if device is None else _to_device(value, device)


def _read(path: Path, verify: bool) -> Any:
    file = MemoryMap(path)
    start = bytes(file.mapping[:64])
    if start.startswith(b"PK\x03\x04"):
        return read_zip(file, verify)
    if is_legacy(file):
        return read_legacy(file)
    if is_safetensors(file):
        return read_safetensors(file)
    known = start.lstrip().startswith(b"{")
    require(known, "load", "the file is neither torch's (zip, or pickles in a row), nor safetensors, nor an index in JSON", path=file.path)
    return _read_shards(file, verify)


def _read_shards(index: MemoryMap, verify: bool) -> dict[str, Any]:
    require(len(index) <= _LARGEST_INDEX, "load", "an index must be small", bytes=len(index))
    places: Any = parse_json(bytes(index.mapping), "the index").get("weight_map")
    sound = isinstance(places, dict) and all(isinstance(shard, str) for shard in places.values())
    require(sound, "load", "an index must have a weight_map, from names to files", path=index.path)
    folder, shards = os.path.dirname(index.path), {}
    for shard in dict.fromkeys(places.values()):
        plain = shard and shard == os.path.basename(shard) and "\\" not in shard and "\0" not in shard and shard not in (".", "..")
        require(plain, "load", "a shard must lie beside its index", shard=shard)
        path = os.path.join(folder, shard)
        require(os.path.isfile(path), "load", "a shard must be there", shard=shard, index=index.path)
        require(path != index.path, "load", "an index must not be its own shard", shard=shard)
        shards[shard] = _read_shard(path, verify)
    missing = [name for name, shard in places.items() if name not in shards[shard]]
    require(not missing, "load", "the shards must hold what the index says", missing=missing)
    return {name: shards[shard][name] for name, shard in places.items()}


def _read_shard(path: str, verify: bool) -> dict[str, Any]:
    start = MemoryMap(path)
    require(start.mapping[:1] != b"{", "load", "a shard must be no index", shard=path)
    value = _read(path, verify)
    require(isinstance(value, dict), "load", "a shard must hold a dict", shard=path, found=type(value))
    return value


def _to_device(value: Any, device: Any) -> Any:
    place = jax.devices("cpu")[0] if device == "cpu" else device
    done: dict[int, tuple[Any, Any]] = {}  # by id, with the object that has it

    def move(item: Any) -> Any:
        if id(item) in done:
            return done[id(item)][1]
        if isinstance(item, (dict, list)):
            done[id(item)] = item, item
            for place_in, inner in list(item.items() if isinstance(item, dict) else enumerate(item)):
                item[place_in] = move(inner)
            return item
        if isinstance(item, np.ndarray):
            done[id(item)] = item, _placed(item, place)
        elif isinstance(item, tuple):
            done[id(item)] = item, tuple(map(move, item))
        else:
            return item
        return done[id(item)][1]

    try:
        return move(value)
    except RecursionError:
        refuse("load", "the object is nested too deeply")


def _placed(array: np.ndarray, place: Any) -> jax.Array:
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and dtypes.index().itemsize == 4:
        narrow = np.dtype(array.dtype.kind + "4")
        limits = np.iinfo(narrow)
        fits = not array.size or (limits.min <= array.min() and array.max() <= limits.max)
        require(fits, "load", "integers of more than 32 bits need JAX's x64 mode", array=array)
        array = array.astype(narrow)
    dtypes.canonical("load", array.dtype)
    return host.placed(array, place)
