"""Checkpoints through Orbax: the latest ones, and the best one on validation.

Orbax restores a flipped byte without an error, so each checkpoint has a checksum per array. If one does not match, or
cannot be read, the checkpoint is moved aside and the one before it is used. Orbax leaves small files in the operating
system's memory, so an old checkpoint is deleted only once all of the new one is forced to the disk.
"""

import contextlib
import itertools
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from linseed.trainer import files
from linseed.trainer.checksum import checksums, seal, shapes, unseal
from linseed.trainer.errors import CheckpointError, is_passing
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.retention import METRIC, best, is_evaluated, kept


class _DamagedError(Exception):
    """A checkpoint that does not hold what was saved."""


class Checkpoints:
    """The checkpoints of one run, in `directory`. Use it as a context manager: leaving it waits for the save in flight.

    A checkpoint holds the state (host arrays) and `progress`, a JSON object of the training loop. Two kinds are kept:
    the latest `keep_latest`, and the one with the best validation accuracy (the later one of equals). The checkpoint of
    a run that was stopped between evaluations is neither: it is kept until there is a newer one.
    """

    def __init__(self, directory: Path, *, keep_latest: int):
        self._directory, self._keep_latest = directory.absolute(), keep_latest
        self._damaged = self._directory.parent / workdir_lib.DAMAGED
        self._saved = None  # the step that the last save may not have brought to the disk yet
        self._judged: dict[int, float] = {}
        files.make(self._directory)
        files.refuse_links(*self._directory.iterdir())
        self._set_aside_torn()
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=("state", "record"),
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Only process 0 opens checkpoints; by default Orbax would wait for all processes at each step.
                multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
                best_fn=lambda metrics: metrics[METRIC],
                best_mode="max",
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.wait()
        finally:
            with self._naming_trouble():
                self._manager.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def evaluated_steps(self) -> list[int]:
        """The steps whose checkpoint was made at an evaluation, ascending. Waits for the save in flight."""
        self.wait()
        return [step for step in self.steps() if is_evaluated(self._manager.metrics(step))]

    def best(self) -> tuple[int, float] | None:
        """The step and the accuracy of the checkpoint that is best on validation, None if none was evaluated."""
        measured = {step: self._manager.metrics(step)[METRIC] for step in self.evaluated_steps()}
        return best({step: self._judged.get(step, accuracy) for step, accuracy in measured.items()})

    def judged_otherwise(self, by: str) -> list[int]:
        """The steps whose accuracy was measured under other settings than `by`: `judged_by` in their progress."""
        return [step for step in self.evaluated_steps() if step not in self._judged and self._judged_by(step) != by]

    def _judged_by(self, step):
        with contextlib.suppress(_DamagedError):
            return (self._record(step) or {}).get("progress", {}).get("judged_by")

    def judge(self, accuracies: dict[int, float]):
        """Sets the accuracies, by step, of checkpoints that were judged anew. Nothing is written."""
        self._judged.update(accuracies)

    def drop_after(self, step: int):
        """Deletes the checkpoints after `step`."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._manager.delete(later)
                self._judged.pop(later, None)
        files.sync(self._directory)

    def save(self, state, *, step: int, progress: dict[str, Any], val_accuracy: float | None):
        """Starts to save; returns once `state` may be overwritten. Raises the error of an earlier save.

        val_accuracy: the score that chooses the best, the higher the better; None if there was no evaluation.
        """
        self.wait()
        files.check(self._directory)
        state = jax.device_get(state)  # on CPUs perhaps the device's buffer; Orbax copies it before it returns
        evaluated = val_accuracy is not None and math.isfinite(val_accuracy)
        metric = float(val_accuracy) if evaluated else -math.inf
        record = seal({"progress": progress, "arrays": checksums(state), METRIC: metric})
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with self._naming_trouble():
            saved = self._manager.save(step, args=args, metrics={METRIC: metric})
        if not saved:
            raise CheckpointError(f"no checkpoint was written at step {step}: {self._directory} has a newer one")
        self._saved = step

    def wait(self):
        """Waits until the last save is on the disk, and then deletes the checkpoints that need not be kept."""
        step, self._saved = self._saved, None
        with self._naming_trouble():
            self._manager.wait_until_finished()
            if step is not None:
                files.sync(self._directory / str(step))
                measured = {step: self._manager.metrics(step)[METRIC] for step in self.steps()}
                for old in measured.keys() - kept(measured, self._keep_latest, judged=self._judged):
                    self._manager.delete(old)

    def restore_latest(self, like):
        """`(state, progress)` of the newest sound checkpoint, or None if none was ever saved.

        like: a state of the same structure, of host arrays. Raises CheckpointError if all are damaged or of another
        model.
        """
        return self._first_sound(like, lambda: max(self.steps()))

    def restore_best(self, like):
        """`(state, progress)` of the sound checkpoint that is best on validation; else as `restore_latest`."""
        return self._first_sound(like, lambda: (self.best() or [max(self.steps())])[0])

    def restore_all(self, like) -> Iterator[tuple[Any, dict[str, Any]]]:
        """`(state, progress)` of every sound checkpoint of an evaluation, oldest first, each read when asked for.

        Yields nothing if none was ever saved. Raises as `restore_latest`.
        """
        for step in self.evaluated_steps():
            restored = self.restore_step(step, like)
            if restored is not None:
                yield restored
        self._refuse_where_all_are_damaged()

    def _first_sound(self, like, choose):
        while self.steps():
            restored = self.restore_step(choose(), like)
            if restored is not None:
                return restored
        self._refuse_where_all_are_damaged()
        return None

    def restore_step(self, step: int, like):
        """`(state, progress)` of one checkpoint, or None if it was damaged: it is then moved aside."""
        try:
            return self._restore(step, like)
        except _DamagedError as error:
            self._set_aside(step, str(error))
            self._manager.reload()
            return None

    def _refuse_where_all_are_damaged(self):
        if not self.steps() and self._damaged.exists():
            raise CheckpointError(
                f"every checkpoint in {self._directory} was damaged and is now in {self._damaged}; restore one from a "
                "backup, or delete that folder to train from the start"
            )

    def _restore(self, step, like):
        """Reads one checkpoint and checks every array; `like` is a state of host arrays with the same structure."""
        record = self._record(step)
        if record is None:
            raise _DamagedError("checksum of its record does not match")
        expected = record["arrays"]
        saved = {(path, dtype, tuple(shape)) for path, (dtype, shape, _) in expected.items()}
        if odd := saved ^ shapes(like):
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._directory} is of another model or optimizer "
                f"(first difference: {min(odd)[0]}); use a new --workdir"
            )
        # Read without `like` and matched by path: Orbax would refuse a link of the optimizer that holds no array.
        arrays = _by_path(self._read(step, state=ocp.args.StandardRestore()).state)
        state = jax.tree_util.tree_map_with_path(lambda path, _: arrays.get(_path(path)), like)
        found = checksums(state)
        for path in sorted(expected):
            if found.get(path) != expected[path]:
                raise _DamagedError(f"checksum of {path} does not match")
        return state, record["progress"]

    def _record(self, step):
        """What was saved beside the arrays, None if its checksum does not match."""
        return unseal(self._read(step, record=ocp.args.JsonRestore()).record)

    def _read(self, step, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # Orbax and TensorStore have many exceptions for a damaged file
            files.check(self._directory)
            if is_passing(error):
                raise CheckpointError(
                    f"the checkpoint of step {step} cannot be read now ({_first_line(error)}); try again later"
                ) from error
            raise _DamagedError(f"cannot be read ({_first_line(error)})") from error

    @contextlib.contextmanager
    def _naming_trouble(self):
        """Raises one LinseedError for the different errors with which Orbax reports a lost folder or a full disk."""
        try:
            yield
        except (OSError, ValueError) as error:
            files.check(self._directory)
            if "No space left on device" not in str(error) and "Disk quota exceeded" not in str(error):
                raise
            raise CheckpointError(
                f"the disk of {self._directory} is full; earlier checkpoints are sound: free some space and run the "
                "same command again"
            ) from error

    def _set_aside_torn(self):
        """Moves aside checkpoints whose metrics are not those that were saved.

        An incomplete one keeps Orbax from opening the others. A wrong accuracy could make another one the best.
        """
        for folder in self._directory.glob("[0-9]*"):
            if not folder.name.isdigit():
                continue
            try:
                metric = json.loads(files.read(folder / "metrics" / "metrics"))[METRIC]
                record = json.loads(files.read(folder / "record" / "metadata"))
                if not isinstance(metric, float) or record.get(METRIC, metric) != metric:
                    raise ValueError(f"{METRIC} {metric} is not what was saved")
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if is_passing(error):
                    raise
                self._set_aside(int(folder.name), f"its metrics or its record cannot be read ({_first_line(error)})")

    def _set_aside(self, step, reason):
        files.make(self._damaged)
        names = (self._damaged / f"{step}-{number}" for number in itertools.count())
        target = next(path for path in names if not os.path.lexists(path))
        files.move(self._directory / str(step), target)
        logging.getLogger(__name__).warning("checkpoint of step %d is damaged: %s; moved to %s", step, reason, target)


def read_arrays(directory: Path, *, step: int) -> dict[str, np.ndarray]:
    """{path: array} of the checkpoint of `step` in `directory`, without checksum tests; for comparisons.

    Raises CheckpointError if it cannot be read.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(directory.absolute() / str(step) / "state")
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint of step {step} in {directory} cannot be read: {_first_line(error)}"
        ) from error
    return _by_path(state)


def _by_path(state):
    return {_path(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _path(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


class NoCheckpoints:
    """`Checkpoints` of a process that is not the writer: it saves nothing; the writer sends what it restores."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Nothing is in flight."""

    def steps(self) -> list[int]:
        return []

    def evaluated_steps(self) -> list[int]:
        return []

    def drop_after(self, step: int):
        """Deletes nothing."""

    def judge(self, accuracies: dict[int, float]):
        """Leaves that to the writer."""

    def restore_latest(self, like) -> None:
        """Left to the writer; see `processes.restored_by_writer`."""

    restore_best = restore_latest

    def restore_step(self, step: int, like) -> None:
        """Left to the writer, too."""

    def save(self, state, **about):
        """Saves nothing."""

    def wait(self):
        """Returns at once."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
