"""Child processes that join each other over this machine's own network."""

import os
import socket

from support import forked

WAIT = 120  # seconds, for what should take a few


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(arguments, *, devices):
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    return forked.Process(arguments, env={**os.environ, "XLA_FLAGS": flags}, merged=True)


def ended(processes):
    """`(status, output)` of each, none of which outlives the test."""
    try:
        outputs = [process.communicate(timeout=WAIT)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()
