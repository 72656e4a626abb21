"""The watchdog: if no step ends for too long, it prints where every thread is and ends the run.

A hung device, a lost peer or a dead file system would otherwise burn the allocation.
"""

import contextlib
import faulthandler
import sys
import time
from collections.abc import Callable, Iterator

# Phases that compile or read much get this many times the limit: the first step, the first evaluation, restoring the
# state, the final evaluation.
COMPILING = 10


@contextlib.contextmanager
def watched(minutes: float) -> Iterator[Callable[..., None]]:
    """Yields `alive(compiles=False)`; call it before each device call and anything else that may hang.

    If the next call is not within `minutes`, or `COMPILING` times that with `compiles`, the stacks of all threads go to
    stderr and the process exits with status 1, even from inside XLA. Watching starts at the first call. minutes: 0
    turns it off. Only one per process: the timer is faulthandler's.
    """
    if not minutes:
        yield lambda *, compiles=False: None
        return
    set_at, set_to = -1.0, 0.0

    def alive(*, compiles=False):
        nonlocal set_at, set_to
        seconds, now = 60 * minutes * (COMPILING if compiles else 1), time.monotonic()
        if seconds == set_to and now - set_at < seconds / 100:
            return  # each timer is a thread, and steps may be short
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
        set_at, set_to = now, seconds

    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
