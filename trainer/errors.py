"""Errors that a user can mend: each message is one line that names the cure."""

import difflib
import errno
from collections.abc import Iterable

_PASSING = (
    errno.EACCES,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EPERM,
    errno.ESTALE,
)


class LinseedError(Exception):
    """Base of all errors whose message, alone, tells the user what to do.

    status: what a process that it ends should exit with.
    """

    status = 2


class ConfigError(LinseedError, ValueError):
    """A config that cannot run: unknown name, value out of range, impossible combination."""


class DataError(LinseedError, ValueError):
    """Data that is missing, damaged, or not what the config says."""


class WorkdirError(LinseedError, RuntimeError):
    """A workdir that is in use, belongs to another config, or cannot be written."""


class CheckpointError(LinseedError, RuntimeError):
    """A checkpoint that is missing, damaged, or of another model."""


class NonFiniteError(LinseedError, ArithmeticError):
    """The loss, the gradient or the update became NaN or infinite.

    what: which of them, and of which step. step: that step, counted from 1. Both are left out where another process
    of the run says it.
    """

    def __init__(self, message: str, *, what: str = "", step: int = 0):
        super().__init__(message)
        self.what, self.step = what, step


class DistributedError(LinseedError, RuntimeError):
    """Processes of one run that cannot join, or were started with different things."""


class LostError(DistributedError):
    """Another process of the run is gone, or does not answer: nothing is wrong with this one."""

    # Launchers and Kubernetes take it for a failure that another try may mend: EX_TEMPFAIL of sysexits.h.
    status = 75


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not in a table: the nearest known name, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}'; {hint}known: {', '.join(known)}"


def is_passing(error: BaseException | None) -> bool:
    """Whether the machine, not the file, is why a read failed: no memory, no handles, no permission, a bad disk."""
    while error is not None:
        if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno in _PASSING:
            return True
        if any(f"[os_error_code='{code}']" in str(error) for code in _PASSING):  # TensorStore's words
            return True
        error = error.__cause__ or error.__context__
    return False
