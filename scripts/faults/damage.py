"""Damages a run's files: sound files are used, damaged ones named and kept, and the run ends as it should.

Each case copies a run cut at its last but one checkpoint, damages the copy and resumes it. Checkpoints are of steps 16
and 20, the latest, and of an earlier one, the best.
"""

import functools
import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from linseed.trainer.errors import LinseedError, NonFiniteError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import Checkpoints, NoCheckpoints
from linseed.trainer.run.compare import CLOCK
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records
from linseed.trainer.run.result import params_sha256
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.train import train_and_evaluate

JUNK = bytes(range(256)) * 3
LATEST = 20


def flip(path: Path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def halve(path: Path):
    """Truncates a file in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(path: Path):
    """Deletes a file, or a folder with its contents."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path):
    """Empties a file or a folder."""
    if path.is_dir():
        for inside in path.iterdir():
            lose(inside)
    else:
        path.write_bytes(b"")


def junk(path: Path):
    """Replaces a file's contents with bytes that are not text."""
    path.write_bytes(JUNK)


# Files of a checkpoint. "largest": the file with most of the arrays.
_FILES = ("metrics/metrics", "record/metadata", "state/_METADATA", "state/manifest.ocdbt", "largest")
_FOLDERS = (".", "state", "record", "metrics")
CHECKPOINT: dict[str, tuple[Callable, str]] = {
    **{f"{how.__name__} {file}": (how, file) for file in _FILES for how in (flip, halve, lose, empty)},
    "junk largest": (junk, "largest"),
    "lose _CHECKPOINT_METADATA": (lose, "_CHECKPOINT_METADATA"),
    **{f"empty folder {folder}": (empty, folder) for folder in _FOLDERS},
}


def damage_checkpoint(folder: Path, name: str):
    """Applies the damage `name` of `CHECKPOINT` to the checkpoint in `folder`."""
    how, file = CHECKPOINT[name]
    if file == "largest":
        path = max((path for path in (folder / "state").rglob("d/*")), key=lambda path: path.stat().st_size)
    else:
        path = folder / file
    how(path)


def _tear_last_line(path):
    path.write_bytes(path.read_bytes()[:-40])


def _append_half_a_line(path):
    path.write_bytes(path.read_bytes() + b'{"step": 22, "ep')


def _append_junk(path):
    path.write_bytes(path.read_bytes() + JUNK)


def _junk_line(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], JUNK + b"\n", *lines[3:]]))


def _nested(path):
    path.write_bytes(path.read_bytes() + b"[" * 100_000)


def _change_a_digit(path):
    """Changes the first digit that can be another without making the file other than JSON."""
    text = path.read_text(encoding="utf-8")
    place = next(found.start() for found in re.finditer(r"(?<=[ .])[0-8]", text))
    path.write_text(text[:place] + str(int(text[place]) + 1) + text[place + 1 :], encoding="utf-8")


def _rolled_back(how):
    """`how`, applied to the rollback file of a run that rolled back once and halved its learning rate."""

    def damage(path):
        rollbacks = Rollbacks(path, on_non_finite="rollback", max_times=1, lr_factor=0.5)
        rollbacks.roll_back(NoCheckpoints(), NonFiniteError("", what="the loss", step=7))
        how(path)

    return damage


# Damage to other files: the function, the file, and the words to expect in the log, "" if it is repaired silently.
FILES: dict[str, tuple[Callable, str, str]] = {
    "half a line after metrics.jsonl": (_append_half_a_line, workdir_lib.METRICS, ""),
    "junk after metrics.jsonl": (_append_junk, workdir_lib.METRICS, ""),
    "brackets after metrics.jsonl": (_nested, workdir_lib.METRICS, ""),
    "last line of metrics.jsonl torn": (_tear_last_line, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "a line of metrics.jsonl is junk": (_junk_line, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "metrics.jsonl is junk": (junk, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "metrics.jsonl is empty": (empty, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "metrics.jsonl is lost": (lose, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "statistics.json torn": (halve, workdir_lib.STATISTICS, ""),
    "statistics.json is junk": (junk, workdir_lib.STATISTICS, ""),
    "a bit of statistics.json": (flip, workdir_lib.STATISTICS, ""),
    "a bit of metrics.jsonl": (flip, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    "a digit of metrics.jsonl": (_change_a_digit, workdir_lib.METRICS, "metrics.jsonl is damaged"),
    **{
        f"{how.__name__} test_openings.jsonl": (how, workdir_lib.OPENINGS, "test_openings.jsonl is damaged")
        for how in (junk, halve, flip, _change_a_digit)
    },
    **{
        f"{how.__name__} {file}": (how, file, f"{file} is damaged")
        for file in (workdir_lib.CONFIG, workdir_lib.RESULT)
        for how in (halve, junk, empty, flip, _change_a_digit)
    },
    **{
        f"{how.__name__} rollbacks.jsonl": (_rolled_back(how), workdir_lib.ROLLBACKS, "rollbacks.jsonl is damaged")
        for how in (halve, junk, empty, flip, _nested)
    },
    "config.json is lost": (lose, workdir_lib.CONFIG, "no config.json"),
}
# Those to try on the log of a finished run, too.
FINISHED = ("a bit of metrics.jsonl", "metrics.jsonl is junk", "metrics.jsonl is empty", "metrics.jsonl is lost")
# The manual fixes that the error messages ask for.
_MENDED_BY_HAND = {
    workdir_lib.CONFIG: lambda workdir, straight: shutil.copyfile(straight / "config.json", workdir / "config.json"),
    workdir_lib.RESULT: lambda workdir, straight: (workdir / workdir_lib.RESULT).unlink(),
    workdir_lib.ROLLBACKS: lambda workdir, straight: (workdir / workdir_lib.ROLLBACKS).unlink(),
}


class Bench:
    """One straight run in `folder`, and damaged copies of it."""

    def __init__(self, config, folder: Path):
        self.config, self._folder, self._shared, self._count = config, folder, Shared(), 0
        self.straight = folder / "straight"
        self.result = self.go_on(self.straight)
        cut = folder / "cut"
        self.copy(self.straight, cut)
        shutil.rmtree(cut / workdir_lib.CHECKPOINTS / str(self.result["steps"]))
        for name in (workdir_lib.RESULT, workdir_lib.REPORT):
            (cut / name).unlink()
        lines = (cut / workdir_lib.METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if json.loads(line)["step"] <= LATEST)
        (cut / workdir_lib.METRICS).write_text(kept, encoding="utf-8")
        self.cut = cut
        self._like = build(config, folder, shared=self._shared).state
        self.steps = self._restored(cut)

    def copy(self, workdir: Path, to: Path):
        """Copies all files of a run."""
        shutil.copytree(workdir, to)

    def go_on(self, workdir: Path, *, writer: Quiet | None = None) -> dict:
        """Trains to the end and returns the result."""
        return train_and_evaluate(
            self.config, workdir, writer=writer or Quiet(), on_config_change="refuse", shared=self._shared
        )

    def checkpoint(self, name: str, *, of: str, finish: bool) -> str:
        """Applies the damage `name` of `CHECKPOINT` to the "latest" or "best" checkpoint; "" or what went wrong."""
        workdir = self.another(self.cut)
        step = LATEST if of == "latest" else self.result["best_step"]
        checkpoints = workdir / workdir_lib.CHECKPOINTS
        damage_checkpoint(checkpoints / str(step), name)
        before = {path.name: contents(path) for path in checkpoints.iterdir()}
        with Said() as said:
            try:
                found, sums = self._restore(workdir, of)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            expected = step if found == step else self._fallback(of)
            if found != expected:
                return f"step {found} was restored instead of step {expected}"
            if sums != self.steps[found]:
                return f"the restored parameters are not those saved at step {found}"
            lines = said.about(f"checkpoint of step {step} is damaged")
            if (found != step) != (len(lines) == 1):
                return f"logged {len(lines)} times that step {step} is damaged"
            aside = workdir / "damaged_checkpoints"
            after = {path.name: contents(path) for path in checkpoints.iterdir()}
            if found != step:
                after[str(step)] = contents(next(aside.iterdir()))
            if after != before:
                return f"files of checkpoints changed: {sorted(set(after) ^ set(before)) or 'contents'}"
            if finish and self._end(workdir) != self.result["params_sha256"]:
                return "the run did not end like the straight one"
        return ""

    def file(self, name: str) -> str:
        """Applies the damage `name` of `FILES`, trains to the end and compares; "" or what went wrong."""
        how, file, words = FILES[name]
        workdir = self.another(self.straight if file in (workdir_lib.RESULT, workdir_lib.OPENINGS) else self.cut)
        if file == workdir_lib.OPENINGS:
            (workdir / workdir_lib.RESULT).unlink()
        how(workdir / file)
        with Said() as said:
            try:
                result = self.go_on(workdir)
            except LinseedError as error:
                said.lines.append(str(error))
                if file not in _MENDED_BY_HAND:
                    return str(error)
                _MENDED_BY_HAND[file](workdir, self.straight)
                result = self.go_on(workdir)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        if words and len(said.about(words)) != 1:
            return f"did not log '{words}' once: {said.lines}"
        if any("\n" in line for line in said.lines):
            return "logged more than one line"
        keys = ("params_sha256", "best_params_sha256", "best_step", "val", "test")
        wrong = [key for key in keys if result[key] != self.result[key]]
        if wrong:
            return f"the run did not end like the straight one: {', '.join(wrong)}"
        if not words and _records(workdir) != _records(self.straight):
            return "its records differ from the straight run's"
        return ""

    def finished(self, name: str) -> str:
        """Damages `metrics.jsonl` of a finished run without its page; "" or what went wrong.

        The same command writes the page, which says that it lacks records.
        """
        workdir = self.another(self.straight)
        (workdir / workdir_lib.REPORT).unlink()
        FILES[name][0](workdir / workdir_lib.METRICS)
        with Said() as said:
            try:
                self.go_on(workdir)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        if "metrics.jsonl is damaged" not in (workdir / workdir_lib.REPORT).read_text(encoding="utf-8"):
            return "the page does not name the damage"
        return "" if len(said.lines) <= 1 else "logged more than one line"

    def _end(self, workdir):
        return self.go_on(workdir)["params_sha256"]

    def another(self, workdir: Path) -> Path:
        """A new copy of the run in `workdir`."""
        self._count += 1
        copy = self._folder / f"copy{self._count}"
        self.copy(workdir, copy)
        return copy

    def _restore(self, workdir, of):
        with self._checkpoints(workdir) as checkpoints:
            restore = checkpoints.restore_latest if of == "latest" else checkpoints.restore_best
            state, _ = restore(self._like)
        return int(state.step), params_sha256(state)

    def _restored(self, workdir):
        """{step: hash} of every checkpoint."""
        with self._checkpoints(workdir) as checkpoints:
            return {int(state.step): params_sha256(state) for state, _ in checkpoints.restore_all(self._like)}

    def _checkpoints(self, workdir):
        return Checkpoints(workdir / workdir_lib.CHECKPOINTS, keep_latest=self.config.checkpoint.keep_latest)

    def _fallback(self, of):
        """The step used instead of a damaged one."""
        if of == "latest":
            return max(step for step in self.steps if step < LATEST)
        judged = {record["step"]: record.get("val_accuracy") for record in _records(self.cut)}
        rest = [step for step in self.steps if step != self.result["best_step"]]
        return max(rest, key=lambda step: (judged[step], step))


class Said(logging.Handler):
    """Collects the library's log while entered, instead of the other handlers."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def about(self, words: str) -> list[str]:
        """The lines that contain `words`."""
        return [line for line in self.lines if words in line]

    def __enter__(self):
        logger = logging.getLogger("linseed")
        self._others, logger.handlers = logger.handlers, [self]
        return self

    def __exit__(self, *exception):
        logging.getLogger("linseed").handlers = self._others


def contents(folder: Path) -> dict[str, int]:
    """The checksum of every file below `folder`."""
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _records(workdir):
    found = read_records(workdir / workdir_lib.METRICS)
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in found]


CASES: dict[str, Callable[[Bench], str]] = {
    **{
        f"{of}: {name}": functools.partial(Bench.checkpoint, name=name, of=of, finish=True)
        for of in ("latest", "best")
        for name in CHECKPOINT
    },
    **{name: functools.partial(Bench.file, name=name) for name in FILES},
    **{f"finished: {name}": functools.partial(Bench.finished, name=name) for name in FINISHED},
}
