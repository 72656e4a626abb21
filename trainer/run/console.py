"""Writers show a run to the user: `Quiet` nothing, `Plain` a line a record, `Live` a bar. `summary` shows its end."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from linseed.trainer.run.figures import figures
from linseed.trainer.step import scores


class Quiet:
    """Shows nothing."""

    def say(self, text: str):
        """Shows a line of text."""

    def start(self, *, step: int, total_steps: int):
        """Called when training starts, or goes on, after `step`."""

    def advance(self, step: int):
        """Called when the steps up to `step` were handed to the devices."""

    def write(self, record: dict):
        """Shows the record of a logged step."""

    def close(self):
        """Called at the end, even where `start` was not."""


class Plain(Quiet):
    """Shows one line a record: for files, pipes and batch systems."""

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
    """Shows a bar with images/s and time left; records with a validation stay on the screen above it."""

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
    """Estimates the time left, from the speed since the first record: the steps before it waited for the compiler."""

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
        others = scores.beside(record, prefix="val_")
        parts.append(f"val loss {record['val_loss']:.4f} acc {record['val_accuracy']:.2%}{others}")
    parts.append(f"lr {record['lr']:.3g}")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def for_console(console: Console) -> Plain:
    """The writer for `console`: a live bar where it is a terminal, plain lines elsewhere."""
    return Live(console) if console.is_terminal else Plain(console)


def summary(result: dict) -> Table:
    """The scores of a finished run, as a table."""
    header, *rows = figures(result)
    table = Table(show_header=True, header_style="bold")
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table
