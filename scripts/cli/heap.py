"""How freed memory is kept: by glibc's malloc, for the next array, in few places.

By default an array of many MiB is new pages of the kernel each time, a sixth of the time of a stream on CPU; and each
of many threads may have an arena of its own, which keeps the most that it ever held, so that memory grows by a few MiB
an epoch as if it leaked. See mallopt(3). What the user has set in the environment is left as it is.
"""

import ctypes
import os

# variable -> parameter of malloc.h, value
SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 2),
    "MALLOC_MMAP_MAX_": (-4, 0),  # no array is a mapping of its own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # what is free at the top of the heap is kept, all of it
}


def keep():
    """For this process, before its threads begin, and for those that it starts; does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for variable, (parameter, value) in SETTINGS.items():
        if variable not in os.environ:
            os.environ[variable] = str(value)
            if mallopt:
                mallopt(parameter, value)
