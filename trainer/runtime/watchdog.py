"""The watchdog: a run in which no step ends for too long shows where every thread is, and ends.

A device that hangs, a peer that is gone, a file system that never answers: waiting would burn the allocation.
"""

import contextlib
import faulthandler
import sys
import time
from collections.abc import Callable, Iterator

# What compiles, or reads as much, may take this many times as long: the first call and the first evaluation, the
# restored state, the judging at the end.
COMPILING = 10


@contextlib.contextmanager
def watched(minutes: float) -> Iterator[Callable[..., None]]:
    """Yields `alive(compiles=False)`, to be called before each call of the devices and whatever else may hang.

    Where the next `alive` is not called within `minutes`, or `COMPILING` times that where `compiles`, the stacks of all
    threads go to stderr and the process exits with status 1, even out of XLA's own code. Nothing is watched before the
    first. minutes: 0 watches nothing. One at a time in a process: the timer is faulthandler's.
    """
    if not minutes:
        yield lambda *, compiles=False: None
        return
    set_at, set_to = -1.0, 0.0

    def alive(*, compiles=False):
        nonlocal set_at, set_to
        seconds, now = 60 * minutes * (COMPILING if compiles else 1), time.monotonic()
        if seconds == set_to and now - set_at < seconds / 100:
            return  # a timer is a thread, and steps may be short
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
        set_at, set_to = now, seconds

    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
