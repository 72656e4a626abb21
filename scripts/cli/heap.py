"""Settings for glibc's malloc: it keeps freed memory for the next array, in few arenas.

By default malloc maps each array of many MiB afresh, which takes a sixth of a stream's time on CPU. Each thread may
also have its own arena, which stays at its peak size: memory grows by a few MiB an epoch as if it leaked. See
mallopt(3). Variables that the user has set are left alone.
"""

import ctypes
import os

# variable -> parameter of malloc.h, value
SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 2),
    "MALLOC_MMAP_MAX_": (-4, 0),  # no array gets its own mapping
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # all free memory at the top of the heap is kept
}


def keep():
    """Applies the settings to this process, before its threads start, and to its children; needs glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for variable, (parameter, value) in SETTINGS.items():
        if variable not in os.environ:
            os.environ[variable] = str(value)
            if mallopt:
                mallopt(parameter, value)
