"""The library of kernels for CPUs that ``csrc`` is compiled to, where jnn was installed with a C++ compiler at hand."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import platform

import jax

# What a processor must have to run the library of each level, as Linux names it; the first that it has is taken.
_LEVELS = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "bmi2", "fma"),
    "x86-64-v3": ("avx2", "bmi2", "fma"),
    "generic": (),
}


@functools.cache
def _flags() -> frozenset[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines[:60] if line.startswith("flags") for flag in line.split())


def found(level: str) -> pathlib.Path | None:
    """The library of a level, if it was built and the processor can run it."""
    path = pathlib.Path(__file__).with_name("csrc") / f"libjnn-{level}.so"
    return path if path.exists() and _flags().issuperset(_LEVELS[level]) else None


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """The library for this processor, or None without one or with ``JNN_LIBRARY=0`` in the environment.

    ``JNN_LIBRARY`` is else the level to load, such as ``x86-64-v3``.
    """
    asked = os.environ.get("JNN_LIBRARY", "")
    if asked == "0" or platform.system() != "Linux":
        return None
    path = next(filter(None, map(found, [asked] if asked in _LEVELS else _LEVELS)), None)
    return None if path is None else ctypes.CDLL(str(path))


@functools.cache
def registered(target: str) -> bool:
    """Whether XLA can call ``target``: registers it with XLA once."""
    library = loaded()
    if library is None:
        return False
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return True
