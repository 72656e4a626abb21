"""A run in several processes: one of them fails, or more or fewer are started again."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np

from linseed.scripts.bench.cases import tiny
from linseed.scripts.cli import moments
from linseed.scripts.faults import faulty
from linseed.trainer.config.changes import changed
from linseed.trainer.errors import LostError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.metrics_log import read_records

WITHIN = 60.0  # seconds in which the others must end
WATCHDOG_MINUTES = 0.5
_STEP = 12  # of 24, at which one process fails
_LATEST = 300.0  # seconds to wait for something that takes a few


class Bench:
    """Shared by the cases: a run by one process with two devices, the reference for all."""

    def __init__(self, folder: Path):
        config = tiny()
        config.data.batch_size, config.eval.batch_size = 66, 252  # for one, two and three devices
        config.guard.watchdog_minutes = WATCHDOG_MINUTES
        self.folder, self.config = folder, config
        self.straight = self._straight("straight", config)
        # Without dropout, which each device draws itself, and at a learning rate that does not amplify rounding.
        gentle = {"schedule": {"name": "constant", "warmup_steps": 0}, "optimizer.lr": 0.01, "model.dropout": 0.0}
        self.gentle = changed(config, gentle)
        self.gentle_straight = self._straight("gentle_straight", self.gentle)
        self.seconds, self.statuses = {}, {}  # of the process without the fault, by case

    def undisturbed(self) -> str:
        """ "" if two processes end like one process with two devices, otherwise the difference."""
        workdir = self.folder / "undisturbed"
        with launched(self.config, workdir, devices=[1, 1]) as runs:
            return _all_ended(runs) or _same_parameters(self.straight, workdir)

    def grief(self, fault: str, index: int) -> str:
        """ "" if process `index` failed, the other ended in time, and both resumed to the same parameters."""
        name = f"{fault}_{index}"
        workdir = self.folder / name
        with launched(self.config, workdir, devices=[1, 1], fault=(fault, index)) as runs:
            began = time.monotonic()
            while faulty.SAID not in runs[index].said():
                if any(run.process.poll() is not None for run in runs) or time.monotonic() - began > _LATEST:
                    return f"it did not reach step {_STEP}: {runs[index].last_line()}"
                time.sleep(0.01)
            began = time.monotonic()
            other = runs[1 - index]
            try:
                self.statuses[name] = other.process.wait(WITHIN)
            except subprocess.TimeoutExpired:
                return f"the other process did not end within {WITHIN:g} s"
            self.seconds[name] = round(time.monotonic() - began, 1)
            words = "Timeout (" if self.statuses[name] == 1 else "error: "  # the watchdog's, or ours
            if self.statuses[name] not in (1, LostError.status) or words not in other.said():
                return f"the other process ended with status {self.statuses[name]}: {other.last_line()}"
        with launched(self.config, workdir, devices=[1, 1]) as runs:
            return _all_ended(runs, resumed=True) or _same_parameters(self.straight, workdir)

    def goes_on(self, devices: list[int]) -> str:
        """ "" if a run of two processes, one of them killed, resumes with one process for each of `devices`.

        With two devices the parameters must agree bit for bit. With another number the losses must agree up to
        rounding, which a batch of other examples would not.
        """
        same = sum(devices) == 2
        config, straight = (self.config, self.straight) if same else (self.gentle, self.gentle_straight)
        killed = self.folder / f"killed_{same}"
        if not killed.exists():
            with launched(config, killed, devices=[1, 1], fault=("killed", 1)) as runs:
                for run in runs:
                    run.wait()
        workdir = self.folder / f"on_{'_'.join(map(str, devices))}"
        shutil.copytree(killed, workdir)
        with launched(config, workdir, devices=devices) as runs:
            if wrong := _all_ended(runs, resumed=True):
                return wrong
        return _same_parameters(straight, workdir) if same else _same_losses(straight, workdir)

    def _straight(self, name, config):
        with launched(config, self.folder / name, devices=[2]) as (run,):
            run.finish()
        return self.folder / name


@contextlib.contextmanager
def launched(
    config: ml_collections.ConfigDict, workdir: Path, *, devices: list[int], fault: tuple[str, int] | None = None
) -> Iterator[list[moments.Run]]:
    """Trains in one process for each of `devices`, its number of virtual CPU devices; ends all with the block.

    fault: of `faulty.FAULTS`, and the index of the process that gets it. Each process but the first has its own
    workdir, as on another machine.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    runs = []
    try:
        for index, count in enumerate(devices):
            program = ["linseed.scripts.train"]
            if fault and fault[1] == index:
                program = ["linseed.scripts.faults.faulty", fault[0], str(_STEP)]
            joins = [f"--coordinator=localhost:{port}", f"--num_processes={len(devices)}", f"--process_id={index}"]
            run = moments.Run(
                config,
                workdir if not index else workdir.with_name(f"{workdir.name}_of_{index}"),
                program=program,
                flags=joins if len(devices) > 1 else [],
                environment={
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
                },
            )
            runs.append(run)
        yield runs
    finally:
        for run in runs:
            run.process.kill()
            run.wait()


def _all_ended(runs, *, resumed=False):
    for run in runs:
        if status := run.wait():
            return f"status {status}: {run.last_line()}"
    return "" if not resumed or "resuming after step" in runs[0].said() else "it started from scratch"


def _same_parameters(straight, workdir):
    ours, theirs = (workdir_lib.read_result(folder)["params_sha256"] for folder in (straight, workdir))
    return "" if ours == theirs else "the parameters are not those of one process with two devices"


def _same_losses(straight, workdir):
    ours, theirs = (read_records(folder / workdir_lib.METRICS) for folder in (straight, workdir))
    if [record["step"] for record in ours] != [record["step"] for record in theirs]:
        return "its records are of other steps"
    apart = [abs(one["train_loss"] / other["train_loss"] - 1) for one, other in zip(ours, theirs, strict=True)]
    return "" if np.max(apart) < 1e-3 else f"a loss differs by {np.max(apart):.1e} of itself"
