"""Memory allocation of training on the CPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory for the next allocation, in the whole process.

    For commands that train, not for libraries: what else the process does is affected as well.
    glibc returns large blocks to the system as soon as they are freed, so that every large tensor
    of every iteration is mapped and zeroed anew. Keeping them saves that time and costs nothing
    but memory that stays reserved. Does nothing where the C library is another one.

    Returns:
        Whether the C library took the setting.
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
