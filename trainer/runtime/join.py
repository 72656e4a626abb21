"""How a process joins a run of several processes and leaves it, even if others die."""

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
from linseed.trainer.runtime import processes, rendezvous
from linseed.trainer.runtime.processes import AGAIN
from linseed.trainer.runtime.signals import Stopped

# The variables in which Open MPI, and MPICH and its relatives, tell each process how many they started.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

# Words in XLA's errors after a collective lost a process: Gloo on CPU; NCCL, for socket errors and remote errors.
# NCCL's other errors are about this process and its devices.
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
    """Makes this process a member of the run; enter it before any other use of JAX.

    coordinator: "HOST:PORT" of process 0, with `num_processes` and `process_id`; "auto" for what JAX detects under
    Slurm, Open MPI up to 4, on TPU pods and in Kubernetes, a single process if nothing was launched; "none" for a
    single process. start_seconds: how long to wait for the others to start. heartbeat_seconds: if a process sends no
    heartbeat for that long, all exit with `LostError.status` and a line on stderr. A process that ends normally waits
    for the others; one that ends with an error does not, and the others treat it as a crash. Raises DistributedError if
    it cannot join, LostError if another did not start.
    """
    arguments = _arguments(coordinator, num_processes=num_processes, process_id=process_id)
    if arguments is None:
        yield
        return
    # JAX's preemption service takes SIGTERM away from Python; a process that hangs would then never end.
    jax.config.update("jax_enable_preemption_service", False)
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if "coordinator_address" in arguments:
        rendezvous.meet(
            coordinator,
            process_id=arguments["process_id"],
            num_processes=arguments["num_processes"],
            start_seconds=start_seconds,
        )
    _last_words(f"not all processes of this run started within {start_seconds} s, or one died; see their outputs")
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"cannot connect to the others ({_first_line(error)}); check --coordinator, --num_processes, --process_id"
        ) from error
    _last_words(f"JAX ended process {jax.process_index()}, most likely because another process died; {AGAIN}")
    processes.become(jax.process_index(), count=jax.process_count())
    stopped = None
    try:
        with _naming_a_lost_process():
            try:
                yield
            except Stopped as error:  # all processes stop together
                stopped = error
            processes.barrier("end", timeout_seconds=processes.WAIT_SECONDS)
    except BaseException as error:
        # Otherwise JAX waits minutes for processes that wait for this one. Exit handlers run last in, first out.
        atexit.register(_leave, _status(error))
        raise
    if stopped:
        raise stopped


def _arguments(coordinator, *, num_processes, process_id):
    """The arguments of `jax.distributed.initialize`; None for a single process."""
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
        raise DistributedError(f"--process_id={process_id} is not in 0..{num_processes - 1}; check --num_processes")
    if num_processes == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


def _num_launched() -> int:
    """How many processes were launched as one run, 1 for a single process.

    Raises DistributedError if a launcher started several that JAX does not find: each would train alone.
    """
    found = _num_found()
    for name in _SIZES:
        size = os.environ.get(name, "1")
        if size not in ("1", str(found)):
            raise DistributedError(
                f"{name}={size}, but JAX does not find {size} processes under this launcher; give each "
                f"--coordinator=HOST:PORT --num_processes={size} --process_id=0, 1, ..., or --coordinator=none for "
                "separate runs"
            )
    return found


def _num_found():
    """How many processes JAX detects. JAX must not initialise a single process: it would give that one GPU only."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
        return 1  # not a pod of an indexed job; JAX would query the cluster
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_count()
    return 1


def _last_words(line):
    """Sets the line that this process prints if JAX aborts it from now on; it exits with `LostError.status`.

    JAX does not tell Python of a lost process: it logs a stack trace and aborts. Python's own signal handlers would
    never run, as the main thread hangs in a collective. This handler is installed with C's `signal`.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_):
        os.write(2, f"error: {line}\n".encode())
        os._exit(LostError.status)

    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    atexit.register(lambda: on_abort)  # keeps it in memory: JAX can abort until the interpreter has ended


@contextlib.contextmanager
def _naming_a_lost_process():
    """Raises LostError if a collective fails because a connection broke; this can precede missed heartbeats."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in _LOST_WORDS):
            raise
        raise LostError(f"the connection to another process broke ({_first_line(error)}); {AGAIN}") from error


def _status(error):
    """The exit status, as in `scripts.cli.command`."""
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
