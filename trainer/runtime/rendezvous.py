"""Before JAX joins the processes of a run, each tells process 0 who it is and hears whether that fits.

JAX does not notice a wrong number of processes, and takes two processes of one id for a crash. A message is a line of
JSON: {"process_id", "num_processes"} to process 0, {"error"} from it, "" if there is none.
"""

import contextlib
import errno
import json
import socket
import time

from linseed.trainer.errors import DistributedError, LostError

_MESSAGE = 2**16  # bytes at most
_RETRY = 0.2  # seconds between two tries to reach process 0
_LATE = 3.0  # seconds for which an error is told to those who come late


def meet(coordinator: str, *, process_id: int, num_processes: int, start_seconds: float):
    """Returns once every process from 0 to `num_processes` - 1 has called it with the same number.

    coordinator: "HOST:PORT" of process 0, whose port is free again afterwards. Raises DistributedError in all processes
    if an id comes twice or the numbers differ, LostError where a process did not come within `start_seconds`.
    """
    host, _, port = coordinator.rpartition(":")
    about = {"process_id": process_id, "num_processes": num_processes}
    latest = time.monotonic() + start_seconds
    listener = _listener(int(port)) if process_id == 0 else None
    with contextlib.ExitStack() as stack:
        if listener is not None:
            line = _gather(stack.enter_context(listener), about, latest=latest, stack=stack)
        else:
            line = _ask((host.strip("[]"), int(port)), about, latest=latest)
    if line:
        raise DistributedError(line)


def _listener(port):
    """A listening socket, None if the port is taken, perhaps by another process 0."""
    six = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if six else socket.AF_INET, dualstack_ipv6=six, backlog=1024
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise DistributedError(
            f"cannot listen at port {port} ({error.strerror}); choose another in --coordinator"
        ) from error


def _gather(listener, own, *, latest, stack):
    """Hears all other processes and answers them; the line of the error, or ""."""
    heard, waiting, line = {0}, [], ""
    while line or len(heard) < own["num_processes"]:
        listener.settimeout(max(0.01, latest - time.monotonic()))
        try:
            connection = stack.enter_context(listener.accept()[0])
        except TimeoutError:
            if line:
                break
            raise LostError(_missing(heard, own["num_processes"])) from None
        about = _receive(connection, seconds=5.0)
        if not isinstance(about, dict) or about.keys() != own.keys():
            continue  # not a process of a run
        waiting.append(connection)
        if not line and (line := _misfit(about, own, heard)):
            latest = time.monotonic() + _LATE  # those who come late shall hear it, too
        heard.add(about["process_id"])
    for connection in waiting:
        with contextlib.suppress(OSError):
            _send(connection, {"error": line})
    return line


def _missing(heard, count):
    numbers = ", ".join(str(number) for number in range(count) if number not in heard)
    return (
        f"process {numbers} of {count} did not start in time; see its output, check --process_id and --num_processes, "
        "and run the same command on every machine again"
    )


def _misfit(about, own, heard):
    if about["num_processes"] != own["num_processes"]:
        return (
            f"process {about['process_id']} was started with --num_processes={about['num_processes']}, process 0 with "
            f"--num_processes={own['num_processes']}; start all with the same number"
        )
    if about["process_id"] in heard:
        return (
            f"two processes were started with --process_id={about['process_id']}; give each another, from 0 to "
            f"{own['num_processes'] - 1}"
        )
    return ""


def _ask(address, about, *, latest):
    """Tells process 0 about this process; the line of its error, or ""."""
    while (left := latest - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, 5.0)) as connection:
                _send(connection, about)
                answer = _receive(connection, seconds=left)
        except OSError:
            answer = None
        if isinstance(answer, dict) and "error" in answer:
            return answer["error"]
        if answer is not None:
            return (
                f"what answers at {address[0]}:{address[1]} is no process 0 that waits for others; check --coordinator"
            )
        time.sleep(_RETRY)
    raise LostError(
        f"process 0 did not answer at {address[0]}:{address[1]} in time; see its output, check --coordinator and "
        "--process_id, and run the same command on every machine again"
    )


def _send(connection, message):
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection, *, seconds):
    """The message that comes, None if the connection ends before one, "" for what is no message."""
    connection.settimeout(seconds)
    with connection.makefile("rb") as file:
        try:
            line = file.readline(_MESSAGE)
        except OSError:
            return None
    try:
        return json.loads(line) if line else None
    except ValueError:
        return ""
