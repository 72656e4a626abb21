"""Coming into a run of several processes and leaving it: who is one of many, and with what status each ends."""

import jax
import pytest
from support.processes import ended, free_port, started

from linseed.trainer.errors import DistributedError, LostError
from linseed.trainer.runtime import join


def pair_of(program):
    """`(status, output)` of two processes that run `program`, handed "HOST:PORT" and which of them each is."""
    port = free_port()
    return ended([started(["-c", program, f"localhost:{port}", str(i)], devices=1) for i in range(2)])


LEAVING = """
import os, sys, time
from linseed.trainer.runtime import join, processes
from linseed.trainer.errors import ConfigError

index = int(sys.argv[2])
processes.HEARD_SECONDS = 0.5
def refuse():
    raise ConfigError("the writer's own")

with join.joined(sys.argv[1], num_processes=2, process_id=index, start_seconds=60, heartbeat_seconds=5):
    if index == 1:
        time.sleep(60)  # at something else, as long as it takes
    processes.from_writer(refuse)
"""


def test_an_error_of_the_writer_is_its_own_even_where_the_others_are_too_slow_to_hear_of_it():
    (writer, said), (other, others_words) = pair_of(LEAVING)
    assert writer == 2, said
    assert "ConfigError: the writer's own" in said
    assert other == LostError.status, others_words


ABORTING = """
import os, sys
from linseed.trainer.runtime import join, processes

address, index = sys.argv[1], int(sys.argv[2])
try:
    with join.joined(address, num_processes=2, process_id=index, start_seconds=60, heartbeat_seconds=5):
        processes.barrier("both", timeout_seconds=60)
        raise RuntimeError("the connection to another process broke")
finally:
    os.abort()  # as JAX does, whatever this process is at
"""


def test_an_abort_by_jax_on_the_way_out_of_an_error_is_a_lost_process_as_well():
    for status, said in pair_of(ABORTING):
        assert status == LostError.status, said
        assert said.splitlines()[-1].startswith("error: JAX ended process ")


ENDING = """
from linseed.scripts.cli import command
from linseed.trainer import errors

def main(console, name):
    raise getattr(errors, name)("what happened")

__spec__ = type("Spec", (), {"name": "ending"})  # as `python -m ending` has it
command.run(main, argument="NAME")
"""


@pytest.mark.parametrize(("name", "status"), [("LostError", 75), ("DistributedError", 2), ("ConfigError", 2)])
def test_a_command_ends_with_the_status_of_its_error(name, status):
    (found,) = ended([started(["-c", ENDING, name], devices=1)])
    assert found == (status, "error: what happened\n")


@pytest.mark.parametrize(
    "says",
    [
        "FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer",
        "INTERNAL: NCCL operation ncclGroupEnd() failed: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "INTERNAL: NCCL operation ncclCommGetAsyncError(comm, &error) failed: remote process exited or there was a "
        "network error. Last NCCL warning(error) log entry (may be unrelated) ''.",
    ],
)
def test_a_collective_that_broke_is_a_lost_process(says):
    with pytest.raises(LostError, match="run the same command on every machine"), join._naming_a_lost_process():
        raise jax.errors.JaxRuntimeError(says)


@pytest.mark.parametrize(
    "says", ["RESOURCE_EXHAUSTED: out of memory", "INTERNAL: NCCL operation ncclCommInitRank failed: invalid usage"]
)
def test_an_error_of_the_devices_is_no_lost_process(says):
    with pytest.raises(jax.errors.JaxRuntimeError, match=says), join._naming_a_lost_process():
        raise jax.errors.JaxRuntimeError(says)


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id", "cure"),
    [
        ("10.0.0.1", 2, 0, "not HOST:PORT"),
        ("10.0.0.1:99999", 2, 0, "not HOST:PORT"),
        ("10.0.0.1:8476", None, 0, "needs --num_processes"),
        ("10.0.0.1:8476", 2, None, "needs --process_id"),
        ("10.0.0.1:8476", 2, 2, r"--process_id=2 is not in 0\.\.1"),
        ("auto", 2, 0, "need --coordinator=HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused_by_name(coordinator, num_processes, process_id, cure):
    joined = join.joined(
        coordinator, num_processes=num_processes, process_id=process_id, start_seconds=1, heartbeat_seconds=5
    )
    with pytest.raises(DistributedError, match=cure), joined:
        pass


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_many_that_a_launcher_started_and_jax_does_not_find_are_refused_and_one_is_not(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(DistributedError, match=f"{name}=4, .*--coordinator=HOST:PORT --num_processes=4 --process_id"):
        join._arguments("auto", num_processes=None, process_id=None)
    assert join._arguments("none", num_processes=None, process_id=None) is None
    assert join._arguments("10.0.0.1:8476", num_processes=4, process_id=3)["process_id"] == 3
    monkeypatch.setenv(name, "1")
    assert join._arguments("auto", num_processes=None, process_id=None) is None


def test_many_that_jax_finds_are_left_to_it_but_not_where_it_finds_another_number(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1:34911")  # of Open MPI up to 4
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert join._arguments("auto", num_processes=None, process_id=None) == {}
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(DistributedError, match="PMI_SIZE=2"):
        join._arguments("auto", num_processes=None, process_id=None)


@pytest.mark.parametrize(("tasks", "expected"), [("1", None), ("16", {})])
def test_a_slurm_step_of_one_task_is_left_alone_and_of_many_is_left_to_jax(monkeypatch, tasks, expected):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[001-002]", "NTASKS": tasks, "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert join._arguments("auto", num_processes=None, process_id=None) == expected
    assert join._arguments("none", num_processes=None, process_id=None) is None
