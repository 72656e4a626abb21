"""How freed memory goes back: glibc gives threads arenas of their own, and each keeps what it once held.

A run has many threads, and which arena one meets is chance, so that over epochs a run comes to hold the most that each
arena ever needed: a few MiB an epoch that look like a leak. With few arenas it stays flat. MALLOC_ARENA_MAX, where the
user has set it, is left as it is.
"""

import ctypes
import os

_VARIABLE = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8  # of malloc.h
ARENAS = 2


def limit_arenas():
    """For this process, before its threads begin, and for those that it starts; does nothing without glibc."""
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = str(ARENAS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_ARENA_MAX, ARENAS)
