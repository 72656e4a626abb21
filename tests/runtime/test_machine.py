"""What the machine has for this process: a container's share, where it is in one."""

import os

import pytest

from linseed.trainer.runtime import machine

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A faked tree of control groups, and the file that says which one is our own."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}[name])
    return tmp_path


def limit(groups, path, value):
    (groups / "cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
    (groups / "cgroup" / path).write_text(f"{value}\n")


@pytest.mark.parametrize(
    "own, limits, expected",
    [
        ("0::/", {}, 64 * GIB),
        ("0::/", {"memory.max": "max"}, 64 * GIB),
        ("0::/", {"memory.max": 2 * GIB}, 2 * GIB),
        (None, {"memory.max": 2 * GIB}, 2 * GIB),
        ("0::/slurm/job/step", {"slurm/job/memory.max": 3 * GIB, "slurm/job/step/memory.max": "max"}, 3 * GIB),
        ("0::/elsewhere", {"slurm/job/memory.max": 3 * GIB}, 64 * GIB),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": 5 * GIB}, 5 * GIB),
        ("4:cpu,memory:/box\n0::/", {"memory/box/memory.limit_in_bytes": 5 * GIB}, 5 * GIB),
        ("4:memory:/", {"memory/memory.limit_in_bytes": 2**63 - 4096}, 64 * GIB),  # what version 1 says for no limit
    ],
)
def test_memory_is_the_least_that_the_machine_or_a_control_group_gives(groups, own, limits, expected):
    if own is not None:
        (groups / "own").write_text(own + "\n")
    for path, value in limits.items():
        limit(groups, path, value)
    assert machine.memory_bytes() == expected


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory_bytes() is None


def test_cores_are_those_that_this_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()
