"""A pickle machine that runs nothing: it builds plain containers, and what a table of names allows."""

from __future__ import annotations

import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .errors import refuse, require

# What a pickle may hold: a bound on time and memory, for one byte can make an object of 64.
_MOST_OPERATIONS = 1 << 22
_LONGEST_INTEGER = 1 << 10
_LONGEST_KEY = 16
_SIZED = (str, bytes, bytearray, list, tuple, dict)
_SCALARS = (str, int, float, bool, bytes, type(None), np.dtype)


class Global:
    """A name that a pickle may refer to, and what calling it makes of its arguments (None: it may not be called)."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call

    def __call__(self, *args: Any) -> Any:
        """What it makes of the arguments."""
        if self.call is None:
            refuse("load", "the pickle calls what may not be called", called=self)
        return self.call(*args)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _is_scalar(key: Any) -> bool:
    return isinstance(key, _SCALARS) and not (isinstance(key, int) and abs(key) >> 64)


def require_keys(keys: Iterable[Any]) -> None:
    """Refuse keys that may take long to hash: nested tuples that share their parts, long integers made to collide."""
    for key in keys:
        plain = _is_scalar(key) or (isinstance(key, tuple) and len(key) <= _LONGEST_KEY and all(map(_is_scalar, key)))
        require(plain, "load", "keys must be strings, numbers or short tuples of them", key=type(key))


def _build_ordered(value: OrderedDict[Any, Any], state: Any) -> None:
    """The attributes of an OrderedDict: a state_dict keeps its versions in ``_metadata``."""
    require(isinstance(state, dict), "load", "the attributes of an OrderedDict must be a dict", attributes=type(state))
    metadata = state.get("_metadata")
    if metadata is not None:
        sound = isinstance(metadata, dict) and all(isinstance(k, str) and isinstance(v, dict) for k, v in metadata.items())
        require(sound, "load", "the metadata of a state_dict must be dicts by name")
        vars(value)["_metadata"] = metadata


def _build_array(value: np.ndarray, state: Any) -> None:
    _, shape, dtype, _, data = state
    require(isinstance(dtype, np.dtype) and dtype.kind in "biufc", "load", "a numpy array must hold numbers", dtype=dtype)
    require(isinstance(data, bytes) and value.size == 0, "load", "a numpy array must be given by its bytes", data=type(data))
    require(all(type(n) is int and n >= 0 for n in shape), "load", "the shape of an array must be sizes", shape=shape)
    value.__setstate__(state)


def _build_dtype(value: np.dtype, state: Any) -> None:
    native = "<" if sys.byteorder == "little" else ">"
    require(state[1] in (native, "|", "="), "load", "numpy arrays of the other byte order are not read", dtype=value)


_BUILD: dict[type, Callable[[Any, Any], None]] = {OrderedDict: _build_ordered, np.ndarray: _build_array}


class Machine:
    """Reads one pickle from ``data``, which starts at ``start``.

    Args:
        allowed: by full name, the value that a pickle which refers to it gets.
        absent: refuses any other name.
        persistent: what a persistent id (a tuple) stands for.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        allowed: Mapping[str, Any],
        absent: Callable[[str], Any],
        persistent: Callable[[tuple[Any, ...]], Any],
        start: int = 0,
    ) -> None:
        self._data, self.position = memoryview(data), start
        self._allowed, self._absent, self._persistent = allowed, absent, persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def run(self) -> Any:
        """The object; ``position`` is then behind it.

        Raises:
            CheckpointError: it is damaged, too large, or refers to what is not allowed.
        """
        begin = self.position
        try:
            for _ in range(_MOST_OPERATIONS):
                code = self._data[self.position]
                self.position += 1
                if code == _STOP:
                    return self._stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    refuse("load", "the pickle holds an operation that is not read", operation=code, at=self.position - 1)
                operation(self)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, struct.error, RecursionError, MemoryError) as error:
            refuse("load", f"the pickle is damaged ({type(error).__name__}: {error})", at=self.position - begin)
        return refuse("load", f"the pickle holds more than {_MOST_OPERATIONS} operations")

    # Reading

    def _take(self, count: int) -> bytes:
        end = self.position + count
        require(end <= len(self._data), "load", "the pickle ends early", at=self.position, wanted=count)
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self.position)
        self.position += struct.calcsize(form)
        return value

    def _line(self) -> str:
        end = self.position
        while self._data[end] != 10:
            end += 1
            require(end - self.position < _LONGEST_INTEGER, "load", "a line of the pickle is too long", at=self.position)
        line = bytes(self._data[self.position : end])
        self.position = end + 1
        return line.decode()

    # Stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _drop(self) -> None:
        self._stack.pop()

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _discard_mark(self) -> None:
        self._since_mark()

    def _top(self, kinds: tuple[type, ...]) -> Any:
        top = self._stack[-1]
        require(type(top) in kinds, "load", "the pickle puts items into what is no container of them", container=type(top))
        return top

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        require(len(items) == count, "load", "the pickle takes more from its stack than there is", at=self.position)
        self._stack[-count:] = [items]

    def _append(self) -> None:
        item = self._stack.pop()
        self._top((list,)).append(item)

    def _extend(self) -> None:
        items = self._since_mark()
        self._top((list,)).extend(items)

    def _put_items(self, items: list[Any]) -> None:
        target = self._top((dict, OrderedDict, Counter))
        require_keys(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _put_item(self) -> None:
        items = self._stack[-2:]
        del self._stack[-2:]
        self._put_items(items)

    def _put_since_mark(self) -> None:
        self._put_items(self._since_mark())

    def _new_dict(self) -> None:
        items = self._since_mark()
        self.push({})
        self._put_items(items)

    def _add_to_set(self) -> None:
        items = self._since_mark()
        require_keys(items)
        self._top((set,)).update(items)

    def _frozen_set(self) -> None:
        items = self._since_mark()
        require_keys(items)
        self.push(frozenset(items))

    # Memo

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        self.push(self._memo[index])

    # Names and calls

    def _global(self, name: str) -> None:
        self.push(self._allowed[name] if name in self._allowed else self._absent(name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        require(type(module) is str and type(name) is str, "load", "the pickle refers to a name that is no string")
        self._global(f"{module}.{name}")

    def _charge(self, items: tuple[Any, ...]) -> None:
        # A call copies what it is given, and one thing in the memo can be given to every call.
        self._copied += len(items) + sum(len(item) for item in items if isinstance(item, _SIZED))
        most = 4 * len(self._data) + 1024
        require(self._copied <= most, "load", "the pickle copies the same things many times", copied=self._copied)

    def _reduce(self) -> None:
        args, call = self._stack.pop(), self._stack.pop()
        ok = isinstance(call, Global) and type(args) is tuple
        require(ok, "load", "the pickle calls what may not be called", called=call if isinstance(call, Global) else type(call))
        self._charge(args)
        self.push(call(*args))

    def _build(self) -> None:
        state = self._stack.pop()
        value = self._stack[-1]
        build = _build_dtype if isinstance(value, np.dtype) else _BUILD.get(type(value))
        if build is None:
            refuse("load", "the pickle sets attributes of an object that may have none", object=type(value))
        self._charge(state if isinstance(state, tuple) else tuple(state.values()) if isinstance(state, dict) else ())
        build(value, state)

    def _persistent_id(self) -> None:
        key = self._stack.pop()
        require(type(key) is tuple, "load", "a persistent id must be a tuple", id=type(key))
        self.push(self._persistent(key))

    # Scalars

    def _integer(self, size: int) -> None:
        require(0 <= size <= _LONGEST_INTEGER, "load", f"an integer must have at most {_LONGEST_INTEGER} bytes", bytes=size)
        self.push(int.from_bytes(self._take(size), "little", signed=True))

    def _text_integer(self) -> None:
        line = self._line().rstrip("L")
        self.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line))

    def _old_string(self, size: int) -> None:
        # A string of Python 2: text if it can be.
        data = self._take(size)
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(data)


def _sized(form: str, push: Callable[[Machine, int], None]) -> Callable[[Machine], None]:
    return lambda m: push(m, m._number(form))


def _text(m: Machine, size: int) -> None:
    m.push(str(m._take(size), "utf-8", "surrogatepass"))


def _bytes(m: Machine, size: int) -> None:
    m.push(m._take(size))


def _protocol(m: Machine, version: int) -> None:
    require(version <= 5, "load", "the pickle must be of a protocol up to 5", protocol=version)


def _ignore(m: Machine, size: int) -> None:
    """A frame only says how much may be read at once."""


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    ord("("): Machine._mark,
    ord("0"): Machine._drop,
    ord("1"): Machine._discard_mark,
    ord("2"): lambda m: m.push(m._stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): Machine._text_integer,
    ord("L"): Machine._text_integer,
    ord("J"): lambda m: m.push(m._number("<i")),
    ord("K"): lambda m: m.push(m._number("<B")),
    ord("M"): lambda m: m.push(m._number("<H")),
    ord("G"): lambda m: m.push(m._number(">d")),
    ord("F"): lambda m: m.push(float(m._line())),
    0x8A: _sized("<B", Machine._integer),
    0x8B: _sized("<i", Machine._integer),
    ord("X"): _sized("<I", _text),
    0x8C: _sized("<B", _text),
    0x8D: _sized("<Q", _text),
    ord("U"): _sized("<B", Machine._old_string),
    ord("T"): _sized("<I", Machine._old_string),
    ord("B"): _sized("<I", _bytes),
    ord("C"): _sized("<B", _bytes),
    0x8E: _sized("<Q", _bytes),
    0x96: _sized("<Q", lambda m, size: m.push(bytearray(m._take(size)))),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m._since_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m._since_mark()),
    ord("a"): Machine._append,
    ord("e"): Machine._extend,
    ord("}"): lambda m: m.push({}),
    ord("d"): Machine._new_dict,
    ord("s"): Machine._put_item,
    ord("u"): Machine._put_since_mark,
    0x8F: lambda m: m.push(set()),
    0x90: Machine._add_to_set,
    0x91: Machine._frozen_set,
    ord("q"): _sized("<B", Machine._remember),
    ord("r"): _sized("<I", Machine._remember),
    0x94: lambda m: m._remember(len(m._memo)),
    ord("h"): _sized("<B", Machine._recall),
    ord("j"): _sized("<I", Machine._recall),
    ord("p"): lambda m: m._remember(int(m._line())),
    ord("g"): lambda m: m._recall(int(m._line())),
    ord("c"): lambda m: m._global(f"{m._line()}.{m._line()}"),
    0x93: Machine._stack_global,
    ord("R"): Machine._reduce,
    0x81: Machine._reduce,  # cls.__new__(cls, *args): what a name makes of its arguments is the same
    ord("b"): Machine._build,
    ord("Q"): Machine._persistent_id,
    0x80: _sized("<B", _protocol),
    0x95: _sized("<Q", _ignore),
}
