"""Keep the C library's heap small in a process that runs for years.

glibc makes an arena for each thread that allocates, up to eight a core. It also raises its mmap threshold with the
blocks that are freed (mallopt(3)). A daemon that decodes files in a few threads then keeps tens of MiB unused."""

from __future__ import annotations

import ctypes

# <malloc.h> of glibc 2.36
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

ARENAS = 2
BLOCK_BYTES = 128 * 1024
"""A freed block of this size or more returns to the kernel at once, and so does that much free heap at the top."""


def hold_small() -> bool:
    """Limit this process's heap, before its first thread starts; return whether the C library supports it (glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    pairs = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, BLOCK_BYTES), (_M_TRIM_THRESHOLD, BLOCK_BYTES))
    return all(mallopt(name, value) == 1 for name, value in pairs)
