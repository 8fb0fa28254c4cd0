"""What the names in torch's pickles stand for, without torch."""

from __future__ import annotations

import codecs
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import numpy as np

from .dtypes import STORAGES, TORCH
from .errors import refuse, require
from .memory_map import strided
from .unpickle import Global, Machine, require_keys

_LONGEST_NAME = 200
_UNTYPED = np.dtype(np.uint8)
# What all tensors of a file together may hold, if elements that overlap are counted as often as they occur: so many times
# what the storages hold, and this much.
_MULTIPLE, _EXPANDED = 16, 1 << 26
_MOST_ARGUMENTS = 16


class StorageType(NamedTuple):
    """A class of storages; ``dtype`` is None for untyped ones, and for tensors that numpy cannot hold."""

    name: str
    dtype: np.dtype | None


class Storages(Protocol):
    """Where the bytes of a file's storages are."""

    def find(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        """The storage of this name, as a 1-D array."""
        ...


class Builder:
    """Makes arrays of the tensors that a pickle names; equal views of one storage become one array."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages
        self._found: dict[str, np.ndarray] = {}
        self._built: dict[Any, tuple[Any, np.ndarray]] = {}  # with what its key is the id of
        self._types: dict[int, np.dtype] = {}
        self._held, self._given = 0, 0
        self.allowed: dict[str, Any] = {
            **_CONSTANTS,
            **{f"torch._utils.{name}": Global(name, call) for name, call in self._calls().items()},
        }
        self.allowed["torch._tensor._rebuild_from_type_v2"] = Global("_rebuild_from_type_v2", self._from_type)

    def read(self, data: bytes | memoryview, start: int = 0) -> tuple[Any, int]:
        """The object pickled at ``start``, and where it ends."""
        machine = Machine(data, self.allowed, refuse_name, self.storage, start)
        value = machine.run()
        require(not isinstance(value, Global), "load", "the file holds no value", found=value)
        return value, machine.position

    def storage(self, key: tuple[Any, ...]) -> np.ndarray | jax.ShapeDtypeStruct:
        """The storage that a persistent id stands for, in both formats."""
        name, dtype, location, count, view = _parse_id(key)
        if location == "meta":
            return jax.ShapeDtypeStruct((count,), dtype)
        whole = self._find(name, dtype, lambda: self._storages.find(name, dtype, count))
        if view is None:
            return whole
        view_name, offset, count = view
        return self._find(f"{view_name} of {name}", dtype, lambda: strided(whole, offset, (count,), (1,)))

    def _find(self, name: str, dtype: np.dtype, find: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in self._found:
            self._found[name] = find()
            self._held += self._found[name].nbytes
        require(self._found[name].dtype == dtype, "load", "a storage must have one dtype", storage=name)
        return self._found[name]

    def _give(self, size: int) -> None:
        """Count the bytes of a tensor."""
        self._given += size
        fits = self._given <= _MULTIPLE * self._held + _EXPANDED
        require(fits, "load", "the elements of tensors overlap, and there are too many; save tensor.clone()", bytes=self._given)

    def _calls(self) -> dict[str, Any]:
        return {
            "_rebuild_tensor": self._tensor,
            "_rebuild_tensor_v2": lambda storage, offset, size, stride, grad, hooks, bits=None: self._tensor(
                storage, offset, size, stride, bits
            ),
            "_rebuild_tensor_v3": self._typed_tensor,
            "_rebuild_parameter": lambda data, *rest: _array(data),
            "_rebuild_parameter_with_state": lambda data, *rest: _array(data),
            "_rebuild_meta_tensor_no_storage": _meta,
            "_rebuild_device_tensor_from_numpy": self._cast,
            "_rebuild_device_tensor_from_cpu_tensor": self._cast,
            "_rebuild_sparse_tensor": _refuse_sparse,
            "_rebuild_qtensor": _refuse_quantized,
            "_rebuild_nested_tensor": _refuse_nested,
        }

    def _typed_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None) -> Any:
        dtype = _dtype(dtype)
        require(dtype != np.bool_, "load", "a bool tensor must have a bool storage")
        known = self._types.setdefault(id(storage), dtype)
        require(known == dtype, "load", "a storage must have one dtype", dtypes=(known.name, dtype.name))
        typed = self._derived(storage, dtype, lambda s: s[: s.nbytes // dtype.itemsize * dtype.itemsize].view(dtype))
        return self._tensor(typed, offset, size, stride, bits)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, bits: Any = None) -> Any:
        sound = type(offset) is int and isinstance(size, tuple) and isinstance(stride, tuple) and isinstance(bits, (dict, type(None)))
        require(sound and len(storage.shape) == 1, "load", "a tensor must have a storage, an offset, sizes and strides")
        if isinstance(storage, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(_sizes(size), storage.dtype)
        # Of the whole storage, once: any number of tensors may be views of it.
        for bit, function in (("conj", np.conj), ("neg", np.negative)):
            if bits and bits.get(bit):
                storage = self._derived(storage, bit, function)
        key = (id(storage), offset, _sizes(size), _sizes(stride))
        if key not in self._built:
            self._give(math.prod(size) * storage.dtype.itemsize)
            self._built[key] = storage, strided(storage, offset, size, stride)
        return self._built[key][1]

    def _derived(self, storage: Any, how: Any, function: Any) -> Any:
        """``function(storage)``, one array for all that ask for it."""
        if isinstance(storage, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(storage.shape, how) if isinstance(how, np.dtype) else storage
        key = id(_array(storage)), how
        if key not in self._built:
            self._give(storage.nbytes)
            self._built[key] = storage, function(storage)
        return self._built[key][1]

    def _cast(self, data: Any, dtype: Any, *rest: Any) -> np.ndarray:
        if _array(data).dtype == _dtype(dtype):
            return data
        self._held += data.nbytes
        return self._derived(data, ("cast", dtype), lambda array: array.astype(dtype))

    def _from_type(self, call: Any, kind: Any, args: Any, state: Any) -> Any:
        plain = isinstance(kind, StorageType) or kind is _CONSTANTS["torch.nn.parameter.Parameter"]
        if not plain:
            refuse("load", f"a subclass of Tensor is not read; {_ADVICE}", subclass=kind)
        rebuilds = (
            isinstance(call, Global) and call.name.startswith("_rebuild_") and isinstance(args, tuple) and len(args) <= _MOST_ARGUMENTS
        )
        require(rebuilds, "load", "a tensor is damaged", call=call)
        return call(*args)


class Scanner(Builder):
    """Reads a pickle and builds no tensor; ``dtypes`` are then those of the storages that it names."""

    def __init__(self) -> None:
        super().__init__(self)
        self.dtypes: dict[str, np.dtype] = {}

    def storage(self, key: tuple[Any, ...]) -> Any:
        """Note the storage."""
        name, dtype, location, _, _ = _parse_id(key)
        if location != "meta":
            require(self.dtypes.setdefault(name, dtype) == dtype, "load", "a storage must have one dtype", storage=name)

    def find(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        """There is none."""
        raise NotImplementedError

    def _calls(self) -> dict[str, Any]:
        return dict.fromkeys(super()._calls(), lambda *args: None)

    def _from_type(self, *args: Any) -> None:
        """As the other calls."""


def _parse_id(key: tuple[Any, ...]) -> tuple[str, np.dtype, Any, int, Any]:
    """``(name, dtype, location, count, view)`` of a persistent id."""
    kind, *rest = (part.decode() if isinstance(part, bytes) else part for part in key)
    require(kind == "storage" and len(rest) in (4, 5), "load", "only storages have persistent ids", id=kind)
    parts: Any = (*rest, None)[:5]
    storage, name, location, count, view = parts
    sound = isinstance(storage, StorageType) and isinstance(name, str) and type(count) is int and count >= 0
    require(sound, "load", "the persistent id of a storage is damaged", id=key)
    return name, storage.dtype or _UNTYPED, location, count, view


_ADVICE = "save its state_dict, of tensors and plain Python containers, instead: torch.save(model.state_dict(), path)"


def _refuse_sparse(*args: Any) -> NoReturn:
    refuse("load", "sparse tensors are not read; save tensor.to_dense()")


def _refuse_quantized(*args: Any) -> NoReturn:
    refuse("load", "quantized tensors are not read; save tensor.dequantize()")


def _refuse_nested(*args: Any) -> NoReturn:
    refuse("load", "nested tensors are not read; save tensor.to_padded_tensor(0.0) and the lengths")


def refuse_name(name: str) -> NoReturn:
    """Refuse a name that is not in the table, saying how to save the file so that it can be read."""
    name = name[:_LONGEST_NAME]
    if name.startswith("torch.") and name.endswith("Storage"):
        refuse("load", f"numpy has no dtype for the tensors of {name}; save them in another one")
    if name.count(".") == 1 and name.startswith("torch."):
        refuse("load", f"{name} has no counterpart here; {_ADVICE}")
    refuse("load", f"the file refers to {name}, which is refused: only tensors and plain containers are read; {_ADVICE}")


def _array(value: Any) -> np.ndarray:
    require(isinstance(value, (np.ndarray, jax.ShapeDtypeStruct)), "load", "a tensor must be made of an array", data=type(value))
    return value


def _dtype(value: Any) -> np.dtype:
    require(isinstance(value, np.dtype), "load", "a tensor must have a dtype", dtype=type(value))
    return value


def _sizes(value: Iterable[Any]) -> tuple[int, ...]:
    sizes = tuple(value)
    require(all(type(n) is int and 0 <= n < 1 << 62 for n in sizes), "load", "sizes must be integers", sizes=sizes)
    return sizes


def _meta(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(_sizes(size), _dtype(dtype))


def _plain(value: Any, kinds: tuple[type, ...]) -> Any:
    require(isinstance(value, kinds), "load", "a container is made of something else", found=type(value))
    return value


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    require(encoding in ("latin1", "latin-1", "utf-8", "ascii"), "load", "bytes must be encoded plainly", encoding=encoding)
    return codecs.encode(_plain(text, (str,)), encoding)


def _set(kind: type) -> Any:
    def make(items: Any = ()) -> Any:
        require_keys(_plain(items, (list, tuple)))
        return kind(items)

    return make


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    pairs = [(key, value) for key, value in _plain(items, (list, tuple))]
    require_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _counter(counts: Any = None) -> Counter[Any]:
    return Counter(_plain(counts or {}, (dict,)))


def _device(kind: str, index: int | None = None) -> str:
    return _plain(kind, (str,)) + ("" if index is None else f":{_plain(index, (int,))}")


def _numpy_dtype(name: Any, align: Any = False, copy: Any = True) -> np.dtype:
    numeric = isinstance(name, str) and len(name) <= 16 and name.lstrip("<>=|")[:1] in tuple("biufc?")
    require(numeric, "load", "numpy arrays must hold numbers", dtype=name)
    dtype = np.dtype(name)
    require(dtype.kind in "biufc" and dtype.isnative, "load", "numpy arrays must hold numbers, in this machine's order", dtype=name)
    return dtype


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    size = _dtype(dtype).itemsize
    require(isinstance(data, bytes) and len(data) == size, "load", "a numpy scalar must be given by its bytes", dtype=dtype)
    return np.frombuffer(data, dtype)[0]


def _numpy_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    return np.empty(0, np.int8)  # of which BUILD makes the array


def _numpy_from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    require(order in ("C", "F"), "load", "a numpy array must be in order C or F", order=order)
    return np.frombuffer(_plain(data, (bytes, bytearray)), _dtype(dtype)).reshape(_sizes(shape), order=order)


def _plain_names() -> dict[str, Any]:
    calls = {
        "OrderedDict": ("collections", _ordered),
        "Counter": ("collections", _counter),
        "defaultdict": ("collections", lambda factory=None: {}),
        "encode": ("_codecs", _encode),
        "Size": ("torch", lambda sizes=(): _sizes(sizes)),
        "device": ("torch", _device),
        "_get_layout": ("torch.serialization", lambda name: _plain(name, (str,))),
    }
    names: dict[str, Any] = {f"{module}.{name}": Global(name, call) for name, (module, call) in calls.items()}
    for module in ("builtins", "__builtin__"):
        names[f"{module}.set"], names[f"{module}.frozenset"] = Global("set", _set(set)), Global("frozenset", _set(frozenset))
        names[f"{module}.complex"] = Global("complex", lambda re, im: complex(_plain(re, (float, int)), _plain(im, (float, int))))
        names[f"{module}.bytearray"] = Global(
            "bytearray", lambda data=b"", *rest: bytearray(_encode(data, *rest) if rest else _plain(data, (bytes,)))
        )
        # Which a defaultdict may make of what it lacks.
        names |= {f"{module}.{name}": Global(name) for name in ("dict", "list", "int", "float", "str")}
        names[f"{module}.bytes"] = Global("bytes", lambda: b"")
    return names


def _numpy_names() -> dict[str, Any]:
    names: dict[str, Any] = {"numpy.dtype": Global("dtype", _numpy_dtype), "numpy.ndarray": Global("ndarray")}
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray.scalar"] = Global("scalar", _numpy_scalar)
        names[f"{core}.multiarray._reconstruct"] = Global("_reconstruct", _numpy_array)
        names[f"{core}.numeric._frombuffer"] = Global("_frombuffer", _numpy_from_bytes)
    return names


def _torch_names() -> dict[str, Any]:
    names: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in TORCH.items()}
    names["torch.bool"], names["torch.nn.parameter.Parameter"] = np.dtype(bool), Global("Parameter")
    names["torch._tensor.Tensor"] = names["torch.Tensor"] = StorageType("Tensor", None)
    for module in ("torch", "torch.cuda"):
        names |= {f"{module}.{name}": StorageType(name, dtype) for name, dtype in STORAGES.items()}
    for name in ("torch.UntypedStorage", "torch.storage.UntypedStorage", "torch.cuda.UntypedStorage"):
        names[name] = StorageType("UntypedStorage", None)
    return names


_CONSTANTS: dict[str, Any] = {**_plain_names(), **_numpy_names(), **_torch_names()}
