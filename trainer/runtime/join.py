"""How a process comes into a run of several and leaves it, whoever dies meanwhile."""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

import jax
from jax._src import clusters

from linseed.trainer.errors import DistributedError, LinseedError, LostError
from linseed.trainer.runtime import processes
from linseed.trainer.runtime.processes import AGAIN
from linseed.trainer.runtime.signals import Stopped

# In which Open MPI, and MPICH with its kin, tell each process how many they started.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

# What XLA's errors say where a collective found a process gone: Gloo on CPU; NCCL, by its texts for errors of a socket
# and of the other side. NCCL's others are of this process and its devices.
_LOST_WORDS = ("Gloo", "unhandled system error", "remote process exited or there was a network error")


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

    coordinator: "HOST:PORT" of process 0, with `num_processes` and `process_id`; "auto" for what JAX finds out under
    Slurm, Open MPI up to 4, on TPU pods and in Kubernetes, one process where nothing was launched; "none" for one
    process. start_seconds: to wait for the others to come. heartbeat_seconds: after that long without a sign of life
    from one of them all end, with `LostError.status` and a line on stderr. Leaving waits for the others; leaving with
    an error does not, and they end as if this one had died. Raises DistributedError where it cannot be.
    """
    arguments = _arguments(coordinator, num_processes=num_processes, process_id=process_id)
    if arguments is None:
        yield
        return
    # JAX's own notice of SIGTERM takes the signal away from Python, and a process that hangs would never end.
    jax.config.update("jax_enable_preemption_service", False)
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _last_words(f"the processes of this run did not all come within {start_seconds} s, or one died; look at the others")
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"the processes cannot join ({_first_line(error)}); check --coordinator, --num_processes, --process_id"
        ) from error
    _last_words(f"JAX ended process {jax.process_index()}, most likely because another of this run died; {AGAIN}")
    processes.become(jax.process_index(), count=jax.process_count())
    stopped = None
    try:
        with _naming_a_lost_process():
            try:
                yield
            except Stopped as error:  # all of them are
                stopped = error
            processes.barrier("end", timeout_seconds=processes.WAIT_SECONDS)
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
        return {} if coordinator == "auto" and _num_launched() > 1 else None
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


def _num_launched() -> int:
    """How many processes were launched as one run, 1 for a process by itself.

    Raises DistributedError where a launcher says so and JAX does not find them: each would train by itself.
    """
    found = _num_found()
    for name in _SIZES:
        size = os.environ.get(name, "1")
        if size not in ("1", str(found)):
            raise DistributedError(
                f"{name}={size}, but JAX does not find {size} processes under this launcher; give each "
                f"--coordinator=HOST:PORT --num_processes={size} --process_id=0, 1, ..., or --coordinator=none for "
                "runs of their own"
            )
    return found


def _num_found():
    """By JAX's own detection, which is not left to find a lone process: it would give that a single GPU."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
        return 1  # a pod that is of no indexed job; JAX would ask the cluster about it
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_count()
    return 1


def _last_words(line):
    """What this process says when JAX aborts it, from now until it has ended, with `LostError.status`.

    JAX offers no way to learn of a lost process in Python: it logs a stack trace and aborts. Python's own handlers run
    between two lines of the main thread, which hangs in a collective by then, so that this one is C's.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_):
        os.write(2, f"error: {line}\n".encode())
        os._exit(LostError.status)

    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    atexit.register(lambda: on_abort)  # JAX can still abort while the interpreter ends, so that it stays in memory


@contextlib.contextmanager
def _naming_a_lost_process():
    """A collective may fail when the connection to a process breaks, before its heartbeats are missed."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in _LOST_WORDS):
            raise
        raise LostError(f"the connection to another process broke ({_first_line(error)}); {AGAIN}") from error


def _status(error):
    """The exit status: that of `scripts.cli.command`."""
    if isinstance(error, LinseedError):
        return error.status
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, (OSError, MemoryError)) else 1


def _leave(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0][:200]
