"""Ends runs from outside, at moments read from the run's files, to prove that nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from linseed import configs
from linseed.trainer import files
from linseed.trainer.config import canonical
from linseed.trainer.errors import LinseedError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.metrics_log import read_records

_LOOK = 0.0005  # seconds between two looks at the files
_LATEST = 600.0  # seconds after which a run without progress has failed


class Timeline(NamedTuple):
    """When an undisturbed run wrote its files, in seconds after its start. records: how many it logged."""

    config: float
    first_record: float
    end: float
    records: int


class Moment(NamedTuple):
    """When to end a run: `seconds` after it was first seen in `stage`, with at least `records` logged."""

    stage: str
    records: int
    seconds: float


class Run:
    """`python -m scripts.train` of a config in a child process.

    program: another module to run instead, with its own arguments. flags: more flags of `scripts.train`.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        *,
        program: Sequence[str] = ("linseed.scripts.train",),
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        path = workdir.parent / f"{canonical.sha256(config)[:16]}.json"
        files.write(path, canonical.to_json(config))
        replay = Path(next(iter(configs.__path__))) / "replay.py"
        self.workdir = workdir
        self._log = workdir.parent / f"{workdir.name}.log"
        self._seen = self._files()
        command = [sys.executable, "-m", *program, f"--config={replay}:{path}", f"--workdir={workdir}", *flags]
        with self._log.open("ab") as log:
            log.write(b"\n")
            self._said_before = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
        self.began = time.monotonic()

    def wait(self) -> int:
        """Waits for the end and returns the exit status."""
        return self.process.wait()

    def finish(self):
        """Waits for the end. Raises LinseedError, with the run's last line, if it failed."""
        status = self.wait()
        if status:
            raise LinseedError(f"the run in {self.workdir} ended with status {status}: {self.last_line()}")

    def last_line(self) -> str:
        """The last line of output."""
        lines = self.said().strip().splitlines()
        return lines[-1] if lines else "nothing"

    def said(self) -> str:
        """The output of this start of the run so far."""
        return self._log.read_bytes()[self._said_before :].decode(errors="replace")

    def resumed_after(self) -> int:
        """The step after which this start of the run said it resumed; 0 if it said nothing."""
        said = re.search(r"resuming after step ([\d,]+)", self.said())
        return int(said[1].replace(",", "")) if said else 0

    def timeline(self) -> Timeline:
        """Waits for the end and returns when the files were written. Raises as `finish`."""
        config = self._seconds_until(lambda: self._is_new(workdir_lib.CONFIG))
        first = self._seconds_until(lambda: self.records())
        self.finish()
        return Timeline(config, first, time.monotonic() - self.began, len(self.records()))

    def end_at(self, moment: Moment, *, by: signal.Signals) -> bool:
        """Sends the signal `by` at `moment` and waits for the end; False if the run ended before."""
        alive = self.when(moment, lambda: self.process.send_signal(by))
        self.wait()
        return alive

    def when(self, moment: Moment, act: Callable[[], None]) -> bool:
        """Calls `act` at `moment`; False if the run ended before."""
        self._seconds_until(lambda: STAGES[moment.stage](self, moment.records))
        due = time.monotonic() + moment.seconds
        while time.monotonic() < due and self.process.poll() is None:
            time.sleep(_LOOK)
        alive = self.process.poll() is None
        if alive:
            act()
        return alive

    def records(self) -> list[dict]:
        """The records in the metrics file, kept ones of earlier starts included; [] until this start writes it."""
        return read_records(self.workdir / workdir_lib.METRICS) if self._is_new(workdir_lib.METRICS) else []

    def started(self) -> bool:
        """Whether this start has written its config: the state exists, and compiling comes next."""
        return self._is_new(workdir_lib.CONFIG)

    def is_saving(self) -> bool:
        """Whether a checkpoint is half written."""
        folder = self.workdir / workdir_lib.CHECKPOINTS
        return folder.exists() and any(not name.isdigit() for name in os.listdir(folder))

    def _is_new(self, name):
        return self._files().get(name, 0) != self._seen.get(name, 0)

    def _files(self):
        names = (workdir_lib.CONFIG, workdir_lib.METRICS)
        paths = {name: self.workdir / name for name in names}
        found = {}
        for name, path in paths.items():
            try:
                found[name] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return found

    def _seconds_until(self, happened: Callable[[], bool]) -> float:
        while not happened() and self.process.poll() is None:
            if time.monotonic() - self.began > _LATEST:
                self.process.kill()
                raise LinseedError(f"the run in {self.workdir} shows nothing after {_LATEST:g} s: {self.last_line()}")
            time.sleep(_LOOK)
        return time.monotonic() - self.began


# (run, records) -> whether the run is in this stage, with that many records logged. An evaluation follows a record
# without one: the runs here log twice as often as they evaluate.
STAGES: dict[str, Callable[[Run, int], bool]] = {
    "start": lambda run, records: True,
    "compile": lambda run, records: run.started(),
    "steps": lambda run, records: len(run.records()) >= records,
    "evaluation": lambda run, records: len(run.records()) >= records and "val_accuracy" not in run.records()[-1],
    "save": lambda run, records: len(run.records()) >= records and run.is_saving(),
}
BRIEF = {"steps": 0.1, "evaluation": 0.02, "save": 0.05}  # seconds, at most, from seeing the stage to the end


def draw(count: int, *, timeline: Timeline, rng: np.random.Generator) -> list[Moment]:
    """`count` random moments, spread evenly over the stages, ordered by the records that they wait for."""
    stages = [name for name, _ in zip(_cycle(rng), range(count), strict=False)]
    spans = {"start": timeline.config, "compile": timeline.first_record - timeline.config, **BRIEF}
    logged = sorted(int(number) for number in rng.integers(1, max(2, timeline.records), count))
    return [
        Moment(stage, records, float(rng.uniform(0, spans[stage])))
        for stage, records in zip(stages, logged, strict=True)
    ]


def _cycle(rng):
    while True:
        yield from rng.permutation(list(STAGES))
