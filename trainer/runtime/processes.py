"""How the processes of a run communicate, on one machine or many.

Process 0 is the writer: it alone uses the run's workdir. It sends what it reads or decides to the others, as JSON over
the coordinator or as arrays over the devices. They need no shared disk: each uses an empty folder of its own as
workdir. In a single process the functions return at once. How a process joins: `trainer.runtime.join`.
"""

import contextlib
import itertools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its key-value store has no public name; Orbax uses it too
from jax.experimental import multihost_utils

from linseed.trainer import errors
from linseed.trainer.errors import DistributedError, LinseedError, LostError

# How long to wait for a live process: it may be reading all of its data. A dead one is noticed much earlier.
WAIT_SECONDS = 1800.0

# How long a process that fails stays, so that the others hear its error, and the writer stays after them.
HEARD_SECONDS = 60.0
LINGER_SECONDS = 1.0

AGAIN = "run the same command on every machine again to go on from the last checkpoint"


T = TypeVar("T")


class _Processes(NamedTuple):
    index: int
    count: int


_processes = _Processes(0, 1)
# Calls of `from_writer`, `AgreedStop` and `agreed`: equal counts in all processes, as they make the same calls.
_turns, _stops, _agreements = itertools.count(), itertools.count(), itertools.count()


def become(index: int, *, count: int):
    """Makes this process number `index` of `count`; before, it is the only one."""
    global _processes
    _processes = _Processes(index, count)


def is_writer() -> bool:
    """Whether this process may write into the run's workdir."""
    return _processes.index == 0


def barrier(name: str, *, timeout_seconds: float):
    """Waits until all processes reach the barrier `name`; use each name once. Raises LostError after the timeout."""
    if _processes.count == 1:
        return
    try:
        _store().wait_at_barrier(f"linseed/{name}", int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"not all processes reached '{name}' within {timeout_seconds:g} s; {AGAIN}") from error


def from_writer(make: Callable[[], Any]) -> Any:
    """Calls `make()` in the writer alone and returns its JSON value in every process.

    If it raises a LinseedError, every process does, the writer after at most `HEARD_SECONDS`. Raises LostError if the
    writer takes longer than `WAIT_SECONDS`.
    """
    if _processes.count == 1:
        return make()
    key = f"linseed/from_writer/{next(_turns)}"
    if is_writer():
        try:
            told = {"value": make()}
        except LinseedError as error:
            _store().key_value_set(key, json.dumps({"error": type(error).__name__, "line": str(error)}))
            _wait_until_heard(key)  # the store dies with this process
            raise
        _store().key_value_set(key, json.dumps(told))
        return told["value"]
    told = json.loads(_awaited(key))
    if "error" in told:
        _wait_until_heard(key)
        raise getattr(errors, told["error"], DistributedError)(f"process 0: {told['line']}")
    return told["value"]


def _wait_until_heard(key):
    with contextlib.suppress(LostError):  # the error raised next says more
        barrier(key + "/heard", timeout_seconds=HEARD_SECONDS)
    if is_writer():  # the others would take the end of the store for a crash while they end
        time.sleep(LINGER_SECONDS)


def restored_by_writer(restore: Callable[[Any], tuple[Any, Any] | None], *, like: Any) -> tuple[Any, Any] | None:
    """Calls `restore(like)` in the writer; returns its `(arrays, JSON value)` or None in every process, bit for bit.

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


def agreed(make: Callable[[], T], *, facts: Callable[[T], dict[str, Any]]) -> T:
    """Calls `make()` in every process and returns its value there, once all processes have the same facts of it.

    facts: value -> {what it is: JSON value}. Where one process raises a LinseedError, or has another fact than process
    0, all raise: that process its own error, the others a DistributedError of one line that names it. Raises LostError
    where a process takes longer than `WAIT_SECONDS`.
    """
    if _processes.count == 1:
        return make()
    folder, error = f"linseed/agreed/{next(_agreements)}", None
    try:
        value = make()
        told = {"facts": facts(value)}
    except LinseedError as own:
        error, told = own, {"error": str(own)}
    _store().key_value_set(f"{folder}/{_processes.index}", json.dumps(told))
    if is_writer():
        every = [json.loads(_awaited(f"{folder}/{index}")) for index in range(_processes.count)]
        _store().key_value_set(f"{folder}/verdict", json.dumps(_disagreement(every)))
    if line := json.loads(_awaited(f"{folder}/verdict")):
        _wait_until_heard(folder)
        raise error or DistributedError(line)
    return value


def _disagreement(every):
    """The line for what the processes told, "" if they agree."""
    for index, told in enumerate(every):
        if "error" in told:
            return f"process {index}: {told['error']}"
    first = every[0]["facts"]
    for index, told in enumerate(every):
        for what in dict.fromkeys([*first, *told["facts"]]):
            ours, theirs = (_shown(facts.get(what)) for facts in (first, told["facts"]))
            if ours != theirs:
                return (
                    f"process {index} has another {what} than process 0: {theirs[:80]} instead of {ours[:80]}; start "
                    "all with the same command, code and data"
                )
    return ""


def _shown(value):
    return "none" if value is None else json.dumps(value)


@contextlib.contextmanager
def workdir_of(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """`workdir` in the writer; in every other process an empty temporary folder."""
    if is_writer():
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="linseed-") as folder:
        yield pathlib.Path(folder)


class AgreedStop:
    """Agrees on a stop: if one process is asked to stop, all stop after the same device call.

    Every process asks equally often, between the same two device calls. A process that should stop, or hears that
    another should, publishes how often it has asked, and goes on. It can ask at most `ahead` + 1 times more than the
    slowest, because it waits for the slowest one's devices. So all have heard from all before they reach the agreed
    call.
    """

    def __init__(self, stop: Callable[[], int], *, ahead: int, poll_seconds: float = 1.0):
        """stop: for this process alone, see `signals.on_signals`. ahead: how many device calls may be in flight.

        poll_seconds: how often to check for stops of other processes; its own it sees at once.
        """
        self._stop, self._ahead, self._poll_seconds = stop, ahead, poll_seconds
        self._asked, self._looked, self._told = 0, time.monotonic(), False
        self._agreed = None  # (calls before all stop, the signal's number)
        self._folder = f"linseed/stop/{next(_stops)}/"

    def __call__(self) -> int:
        """0, or the number of the signal to stop for. All processes call it before each device call."""
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
        """Like a call, for when no device call follows; waits for all processes."""
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
        raise LostError(f"another process did not send '{key}' within {WAIT_SECONDS:g} s; {AGAIN}") from error


def _store():
    return jax_distributed.global_state.client
