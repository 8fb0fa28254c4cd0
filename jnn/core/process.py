"""Settings of the process for programs on a CPU, made when jnn is imported: what freed memory is for, and which thread runs them."""

from __future__ import annotations

import ctypes
import os
import platform

import jax

from . import checks

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
# What glibc takes is an int.
_MOST, _MOST_MIB, _USUAL_MIB = (1 << 31) - 1, 1023, 512


def keep_freed_memory() -> bool:
    """Let glibc keep blocks of memory that are freed, in one arena for all threads. Whether it does.

    XLA:CPU allocates what a program needs anew at each call. From 32 MiB on, or in arenas of threads other than the first,
    glibc gives such memory back to the system when it is freed, and the system fills it with zeros, page by page, for the next
    call: half the time and more of a training step. Threads must not have arenas yet, so this runs when jnn is imported.

    ``JNN_KEEP_MEMORY`` in the environment is the size of the largest block that is kept, in MiB: 512 unless given, 1023 at
    most; up to 2 GiB are kept in all. 0 leaves the allocator alone, and so does any setting there of its own, and JAX told to use
    other platforms than the CPU.

    Raises:
        ValueError: ``JNN_KEEP_MEMORY`` is not a whole number.
    """
    asked = os.environ.get("JNN_KEEP_MEMORY", str(_USUAL_MIB))
    checks.require(asked.isdecimal(), "jnn", "JNN_KEEP_MEMORY must be a number of MiB", ValueError, JNN_KEEP_MEMORY=asked)
    largest = min(int(asked), _MOST_MIB) << 20
    if not largest or not _on_cpu() or any(name in os.environ for name in _SETTINGS) or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    options = {_MMAP_THRESHOLD: largest, _TRIM_THRESHOLD: _MOST, _ARENA_MAX: 1}
    return all(set_option(*option) for option in options.items())


def dispatch_inline() -> bool:
    """Let the thread that calls a program for the CPU run it, as torch does. Whether it does.

    JAX hands each program of more than 1,000 operations to another thread, which has to wake up, and so has the caller afterwards: 50 to
    80 us, several times what a small program takes. It is JAX's setting ``jax_cpu_enable_async_dispatch``, and is read when JAX
    makes its first array: to set it otherwise after jnn is imported is to have it otherwise. Other threads of Python run meanwhile.

    ``JNN_INLINE_DISPATCH=0`` in the environment leaves it alone, and so does JAX told to use other platforms than the CPU.
    """
    if os.environ.get("JNN_INLINE_DISPATCH") == "0" or not _on_cpu():
        return False
    try:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    except AttributeError:  # Of a JAX that has no such setting.
        return False
    return True


def _on_cpu() -> bool:
    return "cpu" in (getattr(jax.config, "jax_platforms", None) or "cpu").split(",")
