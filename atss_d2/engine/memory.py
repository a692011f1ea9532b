"""Tunes memory allocation for training on the CPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for the next allocation, in the whole process.

    Call it in commands that train, not in libraries, as it affects everything in the process. glibc
    returns large blocks to the system as soon as they are freed, so every large tensor of every
    iteration is mapped and zeroed again. Keeping the blocks saves that time; the only cost is that
    their memory stays reserved. With other C libraries, this function does nothing.

    Returns:
        Whether the C library accepted the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.util.find_library("c")
    if library is None:
        return False
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, largest))
