"""Who the processes of a run are: all hear what does not fit, whichever comes first, within seconds."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.processes import free_port

from linseed.trainer.errors import DistributedError, LostError
from linseed.trainer.runtime import rendezvous


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(rendezvous, "_LATE", 0.5)


def ends(*processes, seconds=20.0, port=None):
    """The error of each process, None for none; processes: (process_id, num_processes)."""
    port = port or free_port()

    def meet(process):
        try:
            rendezvous.meet(f"localhost:{port}", process_id=process[0], num_processes=process[1], start_seconds=seconds)
        except (DistributedError, LostError) as error:
            return error

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(meet, processes))


@pytest.mark.parametrize("ids", [(0, 1), (1, 0), (2, 0, 1, 3)])
def test_processes_that_fit_meet_and_leave_the_port_free(ids):
    port = free_port()
    for _ in range(2):
        assert ends(*((number, len(ids)) for number in ids), port=port) == [None] * len(ids)
    socket.create_server(("localhost", port)).close()


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        (((0, 2), (1, 3)), "process 1 was started with --num_processes=3, process 0 with --num_processes=2"),
        (((0, 3), (1, 2)), "process 1 was started with --num_processes=2, process 0 with --num_processes=3"),
        (((0, 3), (1, 3), (1, 3)), "two processes were started with --process_id=1; give each another, from 0 to 2"),
        (((0, 2), (0, 2)), "two processes were started with --process_id=0"),
        (((0, 2), (1, 3), (2, 3)), "--num_processes=3, process 0 with --num_processes=2"),
    ],
)
def test_what_does_not_fit_is_told_to_all_with_status_2(processes, says):
    began = time.monotonic()
    for error in ends(*processes):
        assert error.status == 2 and says in str(error)
    assert time.monotonic() - began < 15


def test_a_process_that_does_not_come_is_named_and_another_try_may_mend_it():
    found = ends((0, 3), (1, 3), seconds=1.0)
    assert [error.status for error in found] == [75, 75]
    assert "process 2 of 3 did not start in time" in str(found[0])
    [alone] = ends((1, 2), seconds=0.5)
    assert alone.status == 75 and "process 0 did not answer" in str(alone)


def test_what_is_no_process_of_a_run_neither_counts_nor_is_believed():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        pair = pool.submit(ends, (0, 2), (1, 2), port=port)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process_id": 1}\n', b""):
            for _ in range(50):
                try:
                    with socket.create_connection(("localhost", port), timeout=1) as stranger:
                        stranger.sendall(words)
                    break
                except OSError:
                    time.sleep(0.02)
        assert pair.result() == [None, None]
    with socket.create_server(("localhost", port)) as other, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ends, (1, 2), port=port, seconds=5.0)
        with other.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            [error] = asked.result()
    assert error.status == 2 and "is no process 0 that waits for others" in str(error)
