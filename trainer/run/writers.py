"""Where a run's numbers go: `metrics.jsonl`, which is the truth, and the console.

Both take the same record at the same step. A writer with nothing to do is `Quiet`.
"""

import json
import logging
import math
import os
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from linseed.trainer.run import workdir as workdir_lib


class JsonLines:
    """`metrics.jsonl`: one JSON object a line, one line a logged step, flushed as it is written."""

    def __init__(self, path: Path, *, resume_step: int, logged: int):
        """Opens `path`, first dropping the records after `resume_step`: the run is about to make them again.

        logged: the step of the last record before, 0 where there was none. Warns where that or an earlier one is lost.
        """
        lines = _read_lines(path)
        kept = [record for record in lines if record and record["step"] <= resume_step]
        # What a kill tears is after the last record that the snapshot stands on, and made again.
        whole = next((i for i, r in enumerate(lines) if r and r["step"] >= logged), len(lines))
        lost = lines[:whole].count(None)
        if logged and (lost or not kept or kept[-1]["step"] < logged):
            logging.getLogger(__name__).warning(
                "%s is damaged: records of steps up to %d are lost (%d bad lines); the snapshots are not touched by it",
                path,
                logged,
                lines.count(None),
            )
        workdir_lib.write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")

    def write(self, record: dict):
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self):
        """Brings what was written to the disk, so that no snapshot outlives the records that it stands on."""
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


class NoLines:
    """`JsonLines` of a process that is not the writer: it keeps no records."""

    def write(self, record: dict):
        """Nothing."""

    def sync(self):
        """Nothing was written."""

    def close(self):
        """Nothing is open."""


def read_records(path: Path) -> list[dict]:
    """The records of a `metrics.jsonl`, in order; what is no record, such as a line that a kill cut, is left out."""
    return [record for record in _read_lines(path) if record]


def _read_lines(path) -> list[dict | None]:
    """The record of each line, None for a line that is none."""
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        whole = isinstance(record, dict) and isinstance(record.get("step"), int)
        lines.append(record if whole else None)
    return lines


class Quiet:
    """Shows nothing."""

    def say(self, text: str):
        """A line for the reader."""

    def start(self, *, step: int, total_steps: int):
        """Training begins at `step`."""

    def advance(self, step: int):
        """`step` steps were handed to the device."""

    def write(self, record: dict):
        """The record of a logged step."""

    def close(self):
        """Nothing more will come."""


class Plain(Quiet):
    """One line a record: for files, pipes and batch systems."""

    def __init__(self, console: Console):
        self._console = console

    def say(self, text):
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def start(self, *, step, total_steps):
        self._pace = _Pace(step, total_steps)

    def write(self, record):
        step = record["step"]
        self._pace.update(step)
        self.say(f"step {step}/{self._pace.total_steps}  {_figures(record)}  {self._pace.left()} left")


class Live(Plain):
    """A bar with images/s and time left; records that hold a validation stay above it."""

    def start(self, *, step, total_steps):
        super().start(step=step, total_steps=total_steps)
        columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("compiling", total=total_steps, completed=step)
        self._progress.start()

    def advance(self, step):
        self._progress.update(self._task, completed=step)

    def write(self, record):
        self._pace.update(record["step"])
        speed = f"{record['images_per_second']:,.0f} images/s" if "images_per_second" in record else ""
        self._progress.update(
            self._task,
            completed=record["step"],
            description=f"loss {record['train_loss']:.4f}  {speed}  {self._pace.left()} left",
        )
        if "val_accuracy" in record:
            self.say(f"step {record['step']:>6}  {_figures(record)}")

    def close(self):
        if hasattr(self, "_progress"):
            self._progress.stop()


class _Pace:
    """Time left, from the speed since the start; the first record, which waits for the compiler, does not count."""

    def __init__(self, step, total_steps):
        self.total_steps = total_steps
        self._step = step
        self._first = None

    def update(self, step):
        self._step = step
        self._first = self._first or (step, time.monotonic())

    def left(self) -> str:
        first_step, first_time = self._first
        if first_step == self._step < self.total_steps:
            return "?"
        pace = (time.monotonic() - first_time) / max(1, self._step - first_step)
        seconds = pace * (self.total_steps - self._step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _figures(record) -> str:
    parts = [
        f"epoch {record['epoch']:.2f}",
        f"train loss {record['train_loss']:.4f} acc {record['train_accuracy']:.2%}",
    ]
    if "val_accuracy" in record:
        parts.append(f"val loss {record['val_loss']:.4f} acc {record['val_accuracy']:.2%}")
    parts.append(f"lr {record['lr']:.3g}")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def for_console(console: Console) -> Plain:
    """The writer that fits `console`: a live bar on a terminal, plain lines elsewhere."""
    return Live(console) if console.is_terminal else Plain(console)


def summary(result: dict) -> Table:
    """The end of a run, as a table."""
    table = Table(show_header=True, header_style="bold")
    for column in ("split", "accuracy", "loss", "examples"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("val", "test"):
        figures = result[split]
        if figures is None:  # sealed
            continue
        loss = f"{figures['loss']:.4f}" if math.isfinite(figures["loss"]) else str(figures["loss"])
        table.add_row(split, f"{figures['accuracy']:.2%}", loss, f"{figures['examples']:,}")
    return table
