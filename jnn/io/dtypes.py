"""What torch and safetensors call the dtypes that numpy can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Names(NamedTuple):
    """The names of one dtype; ``storage`` is None for those that torch saves in untyped storages."""

    storage: str | None
    safetensors: str | None


_NAMES: dict[Any, Names] = {
    np.float32: Names("FloatStorage", "F32"),
    np.float64: Names("DoubleStorage", "F64"),
    np.float16: Names("HalfStorage", "F16"),
    jnp.bfloat16: Names("BFloat16Storage", "BF16"),
    np.int64: Names("LongStorage", "I64"),
    np.int32: Names("IntStorage", "I32"),
    np.int16: Names("ShortStorage", "I16"),
    np.int8: Names("CharStorage", "I8"),
    np.uint8: Names("ByteStorage", "U8"),
    np.bool_: Names("BoolStorage", "BOOL"),
    np.complex64: Names("ComplexFloatStorage", "C64"),
    np.complex128: Names("ComplexDoubleStorage", None),
    np.uint16: Names(None, "U16"),
    np.uint32: Names(None, "U32"),
    np.uint64: Names(None, "U64"),
    jnp.float8_e4m3fn: Names(None, "F8_E4M3"),
    jnp.float8_e5m2: Names(None, "F8_E5M2"),
    jnp.float8_e4m3fnuz: Names(None, "F8_E4M3FNUZ"),
    jnp.float8_e5m2fnuz: Names(None, "F8_E5M2FNUZ"),
    jnp.float8_e8m0fnu: Names(None, "F8_E8M0"),
}
NAMES = {np.dtype(kind): names for kind, names in _NAMES.items()}

# torch.float16 and so on: torch's name of a dtype is numpy's.
TORCH = {dtype.name: dtype for dtype in NAMES}
STORAGES = {names.storage: dtype for dtype, names in NAMES.items() if names.storage}
SAFETENSORS = {names.safetensors: dtype for dtype, names in NAMES.items() if names.safetensors}


def swapped(array: np.ndarray) -> np.ndarray:
    """The numbers of an array that was written on a machine of the other byte order."""
    size = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    return array if size == 1 else array.view(f"u{size}").byteswap().view(array.dtype)
