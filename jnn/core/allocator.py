"""The C library's allocator, told to keep what large arrays leave for those that come next."""

from __future__ import annotations

import ctypes
import os
import platform

import jax

# Of glibc's malloc.h, and the values they get here. With arrays of over 128 MiB kept too, peaks grew and large programs slowed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_OPTIONS = {_MMAP_THRESHOLD: 1 << 27, _TRIM_THRESHOLD: 1 << 28, _ARENA_MAX: 1}
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep blocks of up to 128 MiB that are freed, 256 MiB of them, in one arena for all threads. Whether it does.

    XLA:CPU allocates what a program needs anew at each call. From 32 MiB on, or in arenas of threads other than the first,
    glibc gives such memory back to the system when it is freed, and the system fills it with zeros, page by page, for the next
    call: half the time and more of a training step. Threads must not have arenas yet, so this runs when jnn is imported.
    ``JNN_KEEP_MEMORY=0`` in the environment, any setting there of this allocator, or JAX told to use other platforms than the
    CPU leave it alone.
    """
    asked = os.environ.get("JNN_KEEP_MEMORY", "1") != "0" and not any(name in os.environ for name in _SETTINGS)
    on_cpu = "cpu" in (getattr(jax.config, "jax_platforms", None) or "cpu").split(",")
    if not asked or not on_cpu or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all(set_option(*option) for option in _OPTIONS.items())
