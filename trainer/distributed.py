"""Several processes, on one machine or many, that train one run together.

Process 0 is the writer: the run's workdir is its own, and what it read there or decided goes to the others over the
coordinator, as JSON, or over the devices, as arrays. The others need no disk in common with it; each has an empty
folder of its own in the workdir's place. With one process every function here does what its name says at once.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import clusters
from jax._src import distributed as jax_distributed  # its key-value store has no public name; Orbax takes it here, too
from jax.experimental import multihost_utils

from trainer import errors
from trainer.errors import DistributedError, LinseedError, LostError
from trainer.stopping import Stopped

# Launchers and Kubernetes take it for a failure that another try may mend: EX_TEMPFAIL of sysexits.h.
LOST = 75

# What a process waits for another that is alive: it may be reading all of its data. A dead one is noticed much earlier.
WAIT_SECONDS = 1800.0

AGAIN = "run the same command on every machine again to go on from the last snapshot"


class _Processes(NamedTuple):
    index: int
    count: int


_processes = _Processes(0, 1)
# Of `from_writer` and `AgreedStop`: the same in all processes, as they make the same calls.
_turns, _stops = itertools.count(), itertools.count()


def is_writer() -> bool:
    """Whether this process may write into the run's workdir."""
    return _processes.index == 0


@contextlib.contextmanager
def joined(
    coordinator: str,
    *,
    num_processes: int | None,
    process_id: int | None,
    start_seconds: int,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Makes this process one of the run's; to be entered before any other use of JAX.

    coordinator: "HOST:PORT" of process 0, with `num_processes` and `process_id`; "auto" for what JAX finds out
    under Slurm, Open MPI, on TPU pods and in Kubernetes, one process where it finds nothing; "none" for one process.
    start_seconds: to wait for the others to come. heartbeat_seconds: after that long without a sign of life from one of
    them all end, with status `LOST` and a line on stderr. Leaving waits for the others; leaving with an error does not,
    and they end as if this one had died. Raises DistributedError where it cannot be.
    """
    global _processes
    arguments = _arguments(coordinator, num_processes=num_processes, process_id=process_id)
    if arguments is None:
        yield
        return
    # JAX's own notice of SIGTERM takes the signal away from Python, and a process that hangs would never end.
    jax.config.update("jax_enable_preemption_service", False)
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with _last_words() as words:
        words[0] = (
            f"the processes of this run did not all come within {start_seconds} s, or one died; look at the others"
        )
        try:
            jax.distributed.initialize(
                **arguments, initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds
            )
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"the processes cannot join ({_first_line(error)}); check --coordinator, --num_processes, --process_id"
            ) from error
        words[0] = f"JAX ended process {jax.process_index()}, most likely because another of this run died; {AGAIN}"
        _processes = _Processes(jax.process_index(), jax.process_count())
        stopped = None
        try:
            with _naming_a_lost_process():
                try:
                    yield
                except Stopped as error:  # all of them are
                    stopped = error
                barrier("end", timeout_seconds=WAIT_SECONDS)
        except BaseException as error:
            # Else JAX waits for minutes for processes that wait for this one. Exit handlers run last in, first out.
            atexit.register(_leave, _status(error))
            raise
        if stopped:
            raise stopped


def _arguments(coordinator, *, num_processes, process_id):
    """What `jax.distributed.initialize` is to be told; None for one process."""
    if coordinator in ("auto", "none"):
        if num_processes is not None or process_id is not None:
            raise DistributedError(
                f"--num_processes and --process_id need --coordinator=HOST:PORT, not '{coordinator}'"
            )
        return {} if coordinator == "auto" and _is_one_of_many() else None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise DistributedError(f"--coordinator='{coordinator}' is not HOST:PORT, as in --coordinator=10.0.0.1:8476")
    if num_processes is None or process_id is None:
        missing = "num_processes" if num_processes is None else "process_id"
        raise DistributedError(f"--coordinator={coordinator} needs --{missing} as well")
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"--process_id={process_id} is not in 0..{num_processes - 1}, of --num_processes")
    if num_processes == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


def _is_one_of_many() -> bool:
    """Whether JAX's detection finds this process to be one of several. To a lone one it would leave a single GPU."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
        return False  # a pod that is of no indexed job; JAX would ask the cluster about it
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_count() > 1
    return False


@contextlib.contextmanager
def _last_words() -> Iterator[list[str]]:
    """What this process says when JAX aborts it. `[0]` of what it yields is the line.

    JAX offers no way to learn of a lost process in Python: it logs a stack trace and aborts. Python's own handlers run
    between two lines of the main thread, which hangs in a collective by then, so that this one is C's.
    """
    words = [""]

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_):
        os.write(2, f"error: {words[0]}\n".encode())
        os._exit(LOST)

    handler = ctypes.cast(on_abort, ctypes.c_void_p)
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = library.signal(signal.SIGABRT, handler)
    atexit.register(lambda: on_abort)  # JAX can still abort while the interpreter ends, so that it stays in memory
    try:
        yield words
    except BaseException:
        library.signal(signal.SIGABRT, before)
        raise


@contextlib.contextmanager
def _naming_a_lost_process():
    """On CPU a collective fails when the connection to a process breaks, before its heartbeats are missed."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "Gloo" not in str(error):
            raise
        raise LostError(f"the connection to another process broke ({_first_line(error)}); {AGAIN}") from error


def _status(error: BaseException) -> int:
    """The exit status: that of `scripts.command`, but for a lost process."""
    if isinstance(error, LostError):
        return LOST
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, (LinseedError, OSError, MemoryError)) else 1


def _leave(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def barrier(name: str, *, timeout_seconds: float):
    """Waits for all processes to be at the barrier `name`, each name once. Raises LostError after the timeout."""
    if _processes.count == 1:
        return
    try:
        _store().wait_at_barrier(f"linseed/{name}", int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"not all processes came to '{name}' within {timeout_seconds:g} s; {AGAIN}") from error


def from_writer(make: Callable[[], Any], *, timeout_seconds: float = WAIT_SECONDS) -> Any:
    """`make()`, a JSON value, of the writer, in every process; nobody else calls it.

    A LinseedError that it raises is raised in all. Raises LostError where the writer takes too long.
    """
    if _processes.count == 1:
        return make()
    key = f"linseed/from_writer/{next(_turns)}"
    if is_writer():
        try:
            told = {"value": make()}
        except LinseedError as error:
            _store().key_value_set(key, json.dumps({"error": type(error).__name__, "line": str(error)}))
            barrier(key + "/heard", timeout_seconds=10.0)  # leaving at once, it would take the store with it
            raise
        _store().key_value_set(key, json.dumps(told))
        return told["value"]
    told = json.loads(_awaited(key, timeout_seconds=timeout_seconds))
    if "error" in told:
        barrier(key + "/heard", timeout_seconds=10.0)
        raise getattr(errors, told["error"], DistributedError)(f"process 0: {told['line']}")
    return told["value"]


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


def _awaited(key, *, timeout_seconds=WAIT_SECONDS):
    try:
        return _store().blocking_key_value_get(key, int(timeout_seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostError(f"no '{key}' of another process came within {timeout_seconds:g} s; {AGAIN}") from error


def _store():
    return jax_distributed.global_state.client
