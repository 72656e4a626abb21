"""Stop and go: a signal asks the loop to stop where it can go on from.

Nothing is done in a signal's handler. While `on_signals` is entered, the loop asks "am I to stop?" between two calls of
the devices, saves that very step and raises `Stopped`. Importing this module installs nothing.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

# Who sends them: a batch system or a cloud that wants its machine back; a hand on the keyboard; Slurm's --signal.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """A run that was asked to stop and did; the message, one line, says what is saved and how to go on.

    status: what the process should exit with, 128 + the signal's number: SIGTERM 143, SIGINT 130, SIGUSR1 138.
    """

    def __init__(self, number: int, *, after_step: int):
        where = f"after step {after_step:,}, which is saved" if after_step else "before the first step"
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; run the same command again to go on")
        self.status = 128 + number


def never() -> int:
    """For a run that no one asks to stop."""
    return 0


@contextlib.contextmanager
def on_signals(tell: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Yields `stop()`: the number of the first of `SIGNALS` that came, or 0; once it is not 0 it stays the same.

    tell: handed one line when a signal comes, in another thread. A second signal ends the process at once, with status
    128 + its number, whatever the main thread is at, the compiler included: Python's C handler writes each signal to a
    socket, which a thread reads. A signal that was ignored before stays ignored, as it is for a command in the
    background. To be entered in the main thread, after JAX was told of other processes: it has a handler of its own.
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
            with contextlib.suppress(OSError):  # nobody reads it; the next signal is still to be heard
                tell(f"{signal.Signals(number).name}: stopping after the step under way; a second signal exits at once")

    handled = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in handled.items() if handler != signal.SIG_IGN}
    woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, _nothing)  # a handler of Python's, so that the C handler stays in place
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
    """What has to be done is done elsewhere."""
