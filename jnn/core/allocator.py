"""The C library's allocator, told to keep what large arrays leave for those that come next."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 1 GiB that is freed, where XLA computes on the CPU and glibc allocates. Whether that is so.

    XLA:CPU allocates what a program needs anew at each call. From 32 MiB on, glibc gives such memory back to the system when
    it is freed, and the system fills it with zeros, page by page, for the next call: half the time and more of a training
    step. ``JNN_KEEP_MEMORY=0`` in the environment, or any setting there of glibc's allocator, leaves it alone.
    """
    asked = os.environ.get("JNN_KEEP_MEMORY", "1") != "0" and not any(name in os.environ for name in _SETTINGS)
    if not asked or platform.libc_ver()[0] != "glibc" or jax.default_backend() != "cpu":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_MMAP_THRESHOLD, _KEPT) and set_option(_TRIM_THRESHOLD, _KEPT))
