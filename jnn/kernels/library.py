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


def _flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines[:60] if line.startswith("flags") for flag in line.split()}


@functools.cache
def loaded() -> ctypes.CDLL | None:
    """The library for this processor, or None without one or with ``JNN_LIBRARY=0`` in the environment.

    ``JNN_LIBRARY`` is else the level to load, such as ``x86-64-v3``.
    """
    asked = os.environ.get("JNN_LIBRARY", "")
    if asked == "0" or platform.system() != "Linux":
        return None
    flags = _flags()
    for level, needed in _LEVELS.items():
        path = pathlib.Path(__file__).with_name("csrc") / f"libjnn-{level}.so"
        if path.exists() and flags.issuperset(needed) and asked in ("", level):
            return ctypes.CDLL(str(path))
    return None


@functools.cache
def registered(target: str) -> bool:
    """Whether XLA can call ``target``: registers it with XLA once."""
    library = loaded()
    if library is None:
        return False
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return True
