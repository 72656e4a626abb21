"""Stop signals: the loop stops at a step from which it can resume.

The signal handlers do nothing. Inside `on_signals` the loop asks between two device calls whether to stop. If so, it
saves the current step and raises `Stopped`. Importing this module installs nothing.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

# From a batch system or cloud that wants its machine back; from Ctrl-C; from Slurm's --signal.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """A run was asked to stop and did; the one-line message says what is saved and how to go on.

    status: the exit status of the process, 128 + the signal's number: SIGTERM 143, SIGINT 130, SIGUSR1 138.
    """

    def __init__(self, number: int, *, after_step: int):
        where = f"after step {after_step:,}, which is saved" if after_step else "before the first step"
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; run the same command again to go on")
        self.status = 128 + number


def never() -> int:
    """The `stop` of a run that is never asked to."""
    return 0


@contextlib.contextmanager
def on_signals(tell: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Yields `stop()`: 0, or the number of the first of `SIGNALS` that came, from then on.

    tell: gets one line when a signal comes, in another thread. A second signal ends the process at once with status 128
    + its number, even while XLA compiles: Python's C handler writes each signal to a socket, which a thread reads. A
    signal that was ignored before stays ignored, as in a background command. Enter it in the main thread, after the
    processes have joined: JAX then installs a handler of its own.
    """
    came = []
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch():
        while data := reading.recv(1):
            number = data[0]
            if number not in handled:
                continue
            came.append(number)
            if len(came) > 1:
                os._exit(128 + number)
            with contextlib.suppress(OSError):  # nobody reads it; keep listening for the next signal
                tell(f"{signal.Signals(number).name}: stopping after the step under way; a second signal exits at once")

    handled = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in handled.items() if handler != signal.SIG_IGN}
    woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, _nothing)  # any Python handler keeps the C handler in place
    watching = threading.Thread(target=watch, name="signals", daemon=True)
    watching.start()
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        writing.close()
        watching.join()
        reading.close()


def _nothing(number, frame):
    """The thread in `on_signals` does the work."""
