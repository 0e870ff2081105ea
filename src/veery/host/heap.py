"""Hold the C library's heap small in a process that runs for years.

glibc keeps an arena of its own for each thread that allocates, up to eight a core, and lets the size from which it asks
the kernel for a block of its own rise with the blocks that were freed (mallopt(3)). A daemon that decodes files in a
few threads then keeps tens of MiB that nothing uses."""

from __future__ import annotations

import ctypes

# <malloc.h> of glibc 2.36
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

ARENAS = 2
BLOCK_BYTES = 128 * 1024
"""A block of this size or more goes back to the kernel as soon as it is freed; so does as much free heap at its top."""


def hold_small() -> bool:
    """Bound this process's heap, before its first thread starts; whether the C library knows how (glibc does)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    pairs = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, BLOCK_BYTES), (_M_TRIM_THRESHOLD, BLOCK_BYTES))
    return all(mallopt(name, value) == 1 for name, value in pairs)
