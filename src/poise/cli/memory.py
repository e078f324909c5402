"""What the command asks of the C library: to keep freed memory, which the next pass through the model needs again."""

from __future__ import annotations

import ctypes
import os

TRIM, MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""

KEPT, LARGEST = 2**30, 2**26
"""Bytes: as much as this stays with the process, in blocks of up to that size."""


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep what is freed; False where there is none, or the user has settled it.

    By default the memory of every large tensor goes back to the system when it is freed, and comes anew, zeroed, at a
    page fault per 4 KiB: up to half the time of a small network's pass. For programs, not for a library that is
    imported: the whole process is concerned.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none to be asked
        return False
    return bool(mallopt(MMAP, LARGEST) and mallopt(TRIM, KEPT))
