"""What the processes of a run, on one machine or many, tell each other.

Process 0 is the writer: the run's workdir is its own, and what it read there or decided goes to the others over the
coordinator, as JSON, or over the devices, as arrays. The others need no disk in common with it; each has an empty
folder of its own in the workdir's place. With one process every function here does what its name says at once. How a
process becomes one of them: `trainer.runtime.join`.
"""

import contextlib
import itertools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its key-value store has no public name; Orbax takes it here, too
from jax.experimental import multihost_utils

from linseed.trainer import errors
from linseed.trainer.errors import DistributedError, LinseedError, LostError

# What a process waits for another that is alive: it may be reading all of its data. A dead one is noticed much earlier.
WAIT_SECONDS = 1800.0

# What a process that ends with an error stays for, so that the others hear of it from itself.
HEARD_SECONDS = 60.0

AGAIN = "run the same command on every machine again to go on from the last snapshot"


class _Processes(NamedTuple):
    index: int
    count: int


_processes = _Processes(0, 1)
# Of `from_writer` and `AgreedStop`: the same in all processes, as they make the same calls.
_turns, _stops = itertools.count(), itertools.count()


def become(index: int, *, count: int):
    """Makes this process number `index` of `count`; before, it is the only one."""
    global _processes
    _processes = _Processes(index, count)


def is_writer() -> bool:
    """Whether this process may write into the run's workdir."""
    return _processes.index == 0


def barrier(name: str, *, timeout_seconds: float):
    """Waits for all processes to be at the barrier `name`, each name once. Raises LostError after the timeout."""
    if _processes.count == 1:
        return
    try:
        _store().wait_at_barrier(f"linseed/{name}", int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"not all processes came to '{name}' within {timeout_seconds:g} s; {AGAIN}") from error


def from_writer(make: Callable[[], Any]) -> Any:
    """`make()`, a JSON value, of the writer, in every process; nobody else calls it.

    A LinseedError that it raises is raised in all, in the writer at the latest after `HEARD_SECONDS`. Raises LostError
    where the writer takes longer than `WAIT_SECONDS`.
    """
    if _processes.count == 1:
        return make()
    key = f"linseed/from_writer/{next(_turns)}"
    if is_writer():
        try:
            told = {"value": make()}
        except LinseedError as error:
            _store().key_value_set(key, json.dumps({"error": type(error).__name__, "line": str(error)}))
            _wait_until_heard(key)  # leaving at once, it would take the store with it
            raise
        _store().key_value_set(key, json.dumps(told))
        return told["value"]
    told = json.loads(_awaited(key))
    if "error" in told:
        _wait_until_heard(key)
        raise getattr(errors, told["error"], DistributedError)(f"process 0: {told['line']}")
    return told["value"]


def _wait_until_heard(key):
    with contextlib.suppress(LostError):  # the error that is about to be raised says more
        barrier(key + "/heard", timeout_seconds=HEARD_SECONDS)


def restored_by_writer(restore: Callable[[Any], tuple[Any, Any] | None], *, like: Any) -> tuple[Any, Any] | None:
    """`restore(like)` of the writer, `(arrays, JSON value)` or None, in every process, bit for bit.

    like: host arrays of the same structure, shapes and dtypes. Raises as `from_writer`.
    """
    if _processes.count == 1:
        return restore(like)
    found = []

    def read():
        found.append(restore(like))
        return None if found[0] is None else [found[0][1]]

    value = from_writer(read)
    if value is None:
        return None
    arrays = jax.tree.map(np.asarray, found[0][0] if is_writer() else like)
    # As bytes: the broadcast is a sum, in which a negative zero would lose its sign.
    sent = multihost_utils.broadcast_one_to_all(jax.tree.map(_bytes, arrays))
    return jax.tree.map(lambda array, data: data.view(array.dtype).reshape(array.shape), arrays, sent), value[0]


def _bytes(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def check_same(settings: dict[str, str]):
    """Raises DistributedError in a process whose `settings` are not the writer's, naming the first that differs."""
    theirs = from_writer(lambda: settings)
    for name, value in settings.items():
        if theirs[name] != value:
            raise DistributedError(
                f"process {_processes.index} has another {name} than process 0; start all with the same command, "
                "code and data"
            )


@contextlib.contextmanager
def workdir_of(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """`workdir` in the writer; in every other process an empty folder of its own, gone afterwards."""
    if is_writer():
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="linseed-") as folder:
        yield pathlib.Path(folder)


class AgreedStop:
    """`stopping`'s "am I to stop?" for all processes: where one is asked to, all stop after the same call of devices.

    Every process asks it equally often, between the same two calls. One that is to stop, or hears that another is,
    tells how often it has asked, and goes on. No process can ask more than `ahead` + 1 times more than the slowest,
    whose devices it waits for; so that all have heard of all before they reach the number at which they stop.
    """

    def __init__(self, stop: Callable[[], int], *, ahead: int, poll_seconds: float = 1.0):
        """stop: of this process alone, see `stopping.on_signals`. ahead: calls of the devices that may be under way.

        poll_seconds: how often it looks for what the others were told; what this process was told it sees at once.
        """
        self._stop, self._ahead, self._poll_seconds = stop, ahead, poll_seconds
        self._asked, self._looked, self._told = 0, time.monotonic(), False
        self._agreed = None  # how often to ask before all stop, and the signal's number
        self._folder = f"linseed/stop/{next(_stops)}/"

    def __call__(self) -> int:
        """0, or the number of the signal to stop for. To be asked before each call of the devices, by all processes."""
        if _processes.count == 1:
            return self._stop()
        if not self._told and (self._stop() or self._is_heard()):
            self._tell()
        if self._told and self._agreed is None:
            self._agree(dict(_store().key_value_dir_get(self._folder)))
        self._asked += 1
        at, number = self._agreed or (math.inf, 0)
        return number if self._asked > at else 0

    def last(self) -> int:
        """As asking, once more when there is no further call; waits for all to be there."""
        if _processes.count == 1:
            return self._stop()
        if not self._told:
            self._tell()
        if self._agreed is None:
            self._agree({key: _awaited(key) for key in map(self._key, range(_processes.count))})
        return self._agreed[1]

    def _is_heard(self):
        if time.monotonic() - self._looked < self._poll_seconds:
            return False
        self._looked = time.monotonic()
        return bool(_store().key_value_dir_get(self._folder))

    def _tell(self):
        _store().key_value_set(self._key(_processes.index), json.dumps([self._asked, self._stop()]))
        self._told = True

    def _agree(self, told):
        if len(told) == _processes.count:
            counts, numbers = zip(*map(json.loads, told.values()), strict=True)
            self._agreed = max(counts) + self._ahead + 1, max(numbers)

    def _key(self, index):
        return f"{self._folder}{index}"


def _awaited(key):
    try:
        return _store().blocking_key_value_get(key, int(WAIT_SECONDS * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"no '{key}' of another process came within {WAIT_SECONDS:g} s; {AGAIN}") from error


def _store():
    return jax_distributed.global_state.client
