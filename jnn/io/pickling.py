"""Pickles that ``torch.load(weights_only=True)`` reads, written without torch."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..module.module import Module
from ..module.parameter import Variable
from .dtypes import NAMES
from .errors import refuse, require

_LONGEST_INTEGER = 255
_BATCH = 1000


def is_array(value: Any) -> bool:
    """Whether a value is saved as a tensor."""
    return isinstance(value, (np.ndarray, np.generic, jax.Array, Variable))


def to_numpy(value: Any) -> np.ndarray:
    """An array, parameter or buffer as a contiguous numpy array.

    Raises:
        CheckpointError: it is a random key, is spread over several processes, or has a dtype that torch lacks.
    """
    value = value.detach() if isinstance(value, Variable) else value
    if isinstance(value, jax.Array):
        key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        require(not key, "save", "a random key must be saved as jax.random.key_data(key)", key=value)
        whole = value.is_fully_addressable or value.is_fully_replicated
        require(whole, "save", "an array spread over processes must be saved by a Checkpointer", array=value)
    array = np.asarray(value, order="C")
    require(array.dtype in NAMES, "save", "torch has no such dtype", dtype=array.dtype)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class Pickler:
    """Writes one object as a pickle of protocol 2; ``storages`` are then the arrays that it refers to, by number.

    What occurs twice is written once: arrays that are one object become tensors that share a storage.
    """

    def __init__(self) -> None:
        self.storages: list[Any] = []
        self._out = bytearray(b"\x80\x02")
        self._memo: dict[int, tuple[int, Any]] = {}

    def dump(self, value: Any) -> bytes:
        """The pickle.

        Raises:
            CheckpointError: the object holds what is neither an array nor a plain container or scalar.
        """
        try:
            self._write(value)
        except RecursionError:
            refuse("save", "the object is nested too deeply, or a tuple holds itself")
        return bytes(self._out + b".")

    def _write(self, value: Any) -> None:
        value = value.detach() if isinstance(value, Variable) else value
        if id(value) in self._memo:
            self._out += b"j" + struct.pack("<I", self._memo[id(value)][0])
            return
        write = _WRITERS.get(type(value))
        if write is None:
            write = next((write for kind, write in _KINDS if isinstance(value, kind)), Pickler._refuse)
        write(self, value)

    def _refuse(self, value: Any) -> None:
        if isinstance(value, Module):
            refuse("save", "a Module is saved by its state_dict: save(model.state_dict(), path)", value=type(value))
        if isinstance(value, tuple):
            refuse("save", "a named tuple would come back as a plain one; save a dict, or an Optimizer's state_dict()", value=type(value))
        refuse("save", "only arrays, numbers, strings, dtypes and plain containers are saved", value=type(value))

    def _remember(self, value: Any) -> None:
        number = len(self._memo)
        self._memo[id(value)] = number, value
        self._out += b"r" + struct.pack("<I", number)

    def _global(self, module: str, name: str) -> None:
        self._out += f"c{module}\n{name}\n".encode()

    def _call(self, module: str, name: str, *args: Any) -> None:
        self._global(module, name)
        self._write_plain_tuple(args)
        self._out += b"R"

    # Scalars

    def _integer(self, value: int) -> None:
        value = int(value)
        if 0 <= value < 256:
            self._out += b"K" + struct.pack("<B", value)
        elif -(1 << 31) <= value < 1 << 31:
            self._out += b"J" + struct.pack("<i", value)
        else:
            size = value.bit_length() // 8 + 1
            require(size <= _LONGEST_INTEGER, "save", f"an integer must have at most {_LONGEST_INTEGER} bytes", bytes=size)
            self._out += b"\x8a" + struct.pack("<B", size) + value.to_bytes(size, "little", signed=True)

    def _float(self, value: float) -> None:
        self._out += b"G" + struct.pack(">d", value)

    def _string(self, value: str) -> None:
        data = str(value).encode("utf-8", "surrogatepass")
        require(len(data) < 1 << 32, "save", "a string must be shorter than 4 GiB", bytes=len(data))
        self._out += b"X" + struct.pack("<I", len(data)) + data

    def _bytes(self, value: bytes) -> None:
        self._call("_codecs", "encode", value.decode("latin1"), "latin1")

    def _bytearray(self, value: bytearray) -> None:
        self._call("__builtin__", "bytearray", value.decode("latin1"), "latin-1")
        self._remember(value)

    def _complex(self, value: complex) -> None:
        self._call("__builtin__", "complex", value.real, value.imag)

    def _dtype(self, value: np.dtype) -> None:
        require(value in NAMES, "save", "torch has no such dtype", dtype=value)
        self._global("torch", value.name)

    # Containers

    def _write_plain_tuple(self, value: Iterable[Any]) -> None:
        self._out += b"("
        for item in value:
            self._write(item)
        self._out += b"t"

    def _tuple(self, value: tuple[Any, ...]) -> None:
        self._write_plain_tuple(value)
        self._remember(value)

    def _items(self, items: list[Any], code: bytes) -> None:
        # In batches, as the items between a mark and its end are held twice while they are read.
        for start in range(0, len(items), _BATCH):
            self._out += b"("
            for item in items[start : start + _BATCH]:
                self._write(item)
            self._out += code

    def _list(self, value: list[Any]) -> None:
        self._out += b"]"
        self._remember(value)
        self._items(value, b"e")

    def _dict(self, value: dict[Any, Any]) -> None:
        self._out += b"}"
        self._remember(value)
        self._items([part for pair in value.items() for part in pair], b"u")

    def _ordered(self, value: OrderedDict[Any, Any]) -> None:
        self._call("collections", "OrderedDict")
        self._remember(value)
        self._items([part for pair in value.items() for part in pair], b"u")
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:
            self._write({"_metadata": metadata})
            self._out += b"b"

    def _set(self, value: set[Any]) -> None:
        self._call("__builtin__", "set", list(value))
        self._remember(value)

    # Tensors

    def _array(self, value: Any) -> None:
        dtype, shape = np.dtype(value.dtype) if not isinstance(value, jax.Array) else value.dtype, tuple(value.shape)
        if dtype not in NAMES:
            to_numpy(value)  # says why not
        names, count = NAMES[np.dtype(dtype).newbyteorder("=")], math.prod(shape)
        untyped = names.storage is None
        self._global("torch._utils", "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2")
        self._out += b"(("
        self._string("storage")
        self._global("torch.storage", "UntypedStorage") if untyped else self._global("torch", str(names.storage))
        self._string(str(len(self.storages)))
        self._string("cpu")
        self._integer(count * np.dtype(dtype).itemsize if untyped else count)
        self._out += b"tQ"
        strides = tuple(math.prod(shape[axis + 1 :]) if count else 1 for axis in range(len(shape)))
        for part in (0, shape, strides, False):
            self._write_plain_tuple(part) if isinstance(part, tuple) else self._write(part)
        self._call("collections", "OrderedDict")
        if untyped:
            self._dtype(np.dtype(dtype))
        self._out += b"tR"
        self.storages.append(value)
        self._remember(value)

    def _abstract(self, value: jax.ShapeDtypeStruct) -> None:
        shape = value.shape
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        self._call("torch._utils", "_rebuild_meta_tensor_no_storage", np.dtype(value.dtype), shape, strides, False)
        self._remember(value)


def _constant(code: bytes) -> Callable[[Pickler, Any], None]:
    def write(pickler: Pickler, value: Any) -> None:
        pickler._out += code

    return write


_WRITERS: dict[type, Callable[[Any, Any], None]] = {
    type(None): _constant(b"N"),
    bool: lambda pickler, value: _constant(b"\x88" if value else b"\x89")(pickler, value),
    int: Pickler._integer,
    float: Pickler._float,
    str: Pickler._string,
    bytes: Pickler._bytes,
    bytearray: Pickler._bytearray,
    complex: Pickler._complex,
    tuple: Pickler._tuple,
    list: Pickler._list,
    set: Pickler._set,
    jax.ShapeDtypeStruct: Pickler._abstract,
}
# Classes that are derived from; np.float64 is a float and yet an array, an OrderedDict is a dict.
_KINDS: list[tuple[Any, Callable[[Any, Any], None]]] = [
    ((np.ndarray, np.generic, jax.Array), Pickler._array),
    (np.dtype, Pickler._dtype),
    (OrderedDict, Pickler._ordered),
    (dict, Pickler._dict),
]
