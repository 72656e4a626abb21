"""How much memory and how many cores this process may use, counting the limits of its container."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_bytes() -> int | None:
    """The memory that this process may use, in bytes: the machine's, or a lower limit of its container.

    None if the system does not say.
    """
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """The memory limits of this process's control group and its parents, in cgroup versions 1 and 2."""
    groups = {("", "memory.max"): "/", ("memory", "memory.limit_in_bytes"): "/"}  # as seen in most containers
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:
                groups["", "memory.max"] = path
            elif "memory" in kinds.split(","):
                groups["memory", "memory.limit_in_bytes"] = path
    for (folder, name), path in groups.items():
        group = _CGROUPS / folder / path.lstrip("/")
        for around in (group, *group.parents):
            if around.is_relative_to(_CGROUPS):
                with contextlib.suppress(OSError, ValueError):  # ValueError: "max" means no limit
                    yield int((around / name).read_text(encoding="utf-8"))


def cores() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
