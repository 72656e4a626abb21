"""What becomes of the steps: each window of them is read, checked, logged, saved and shown, in this order.

The metrics of a step are a row of one array on the devices (`step.multi_step`). A window of rows is read in one
transfer and becomes a record, for `metrics.jsonl` and the console. Where a validation ends the window, the state is
saved with it.
"""

import contextlib
import math
import time
from collections.abc import Callable

import jax
import ml_collections

from linseed.trainer.run.checkpoint import Checkpoints, NoCheckpoints
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import MetricsLog, NoMetricsLog
from linseed.trainer.run.progress import Progress
from linseed.trainer.run.windows import Window, Windows
from linseed.trainer.step import metrics, nonfinite
from linseed.trainer.step.multi_step import window_rows
from linseed.trainer.step.scores import score, scores


class Recorder:
    """Owns progress, the clock, the window that is waiting to be read, and where its record goes.

    The loop hands over each window with `hold`, goes on, and calls `flush` once the window is computed: the host reads
    and saves while the devices are busy with the next calls. `close` closes the log and the console.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        progress: Progress,
        step: int,
        windows: Windows,
        batch_size: int,
        num_examples: int,
        log: MetricsLog | NoMetricsLog,
        checkpoints: Checkpoints | NoCheckpoints,
        writer: Quiet,
        page: Callable[[], None] | None,
        started: float,
    ):
        """step, progress: where the run goes on from. num_examples: of an epoch. page: writes the report after each
        evaluation. started: see `time.monotonic`."""
        self.progress, self.windows, self.writer = progress, windows, writer
        self.waiting: Window | None = None
        # Of the window that a stop cut. Other intervals may have made that window shorter since.
        self.rows = progress.rows[max(0, len(progress.rows) - windows.begun(step)) :]
        self._config, self._batch_size, self._num_examples = config, batch_size, num_examples
        self._log, self._checkpoints, self._page = log, checkpoints, page
        self._max_skips = config.guard.max_times if config.guard.on_non_finite == "skip" else 0
        self._start = step - len(self.rows)  # of the window after the one that is waiting
        self._finite_steps = []  # of the window before
        self._seconds_before, self._started = progress.seconds, started
        self._window_began = None  # the first window waits for the compiler and is not timed

    def is_stale(self) -> bool:
        """Whether early stopping ends the run."""
        return self.progress.is_stale(self._config.early_stopping.patience)

    def hold(self, **window):
        """Takes over the window, given as the fields of `Window` but `start`. It waits for `flush`."""
        self.waiting = Window(start=self._start, **window)
        self._start = self.waiting.step
        if self.waiting.evaluation and self._config.early_stopping.patience:  # whether to go on depends on it
            self.flush()

    def waits_for(self, call: jax.Array) -> bool:
        """Whether `call` is the last one of the window that is waiting."""
        return self.waiting is not None and self.waiting.call is call

    def flush(self):
        """Logs, saves and shows the window that is waiting, if there is one. Raises NonFiniteError instead."""
        window = self.waiting
        if window is None:
            return
        record = self._record(window)
        self._log.write(record)
        self.progress = self.progress.replace(logged=window.step)
        if window.evaluation:
            self._save(window, rows=[], val_accuracy=score(self.progress.val, self.progress.monitor))
            if self._page:
                self._page()
        self.writer.write(record)  # last, because it may fail for reasons outside the run
        self.waiting = None

    def save_stopped(self, **window):
        """Saves the step at which the run stopped within a window, unless it is saved, and the rows of the window."""
        window = Window(start=self._start, **window)
        if window.step and window.step not in self._checkpoints.steps():
            rows, _, _ = self._read(window)
            self._save(window, rows=rows.tolist(), val_accuracy=None)

    def close(self):
        """Closes the console and the log, and frees the window that is waiting."""
        self.waiting = None
        with contextlib.closing(self._log):
            self.writer.close()

    def _record(self, window):
        """The record of `window`, which is also counted in progress."""
        _, steps, bad_in_a_row = self._read(window)
        ended = window.ended or time.monotonic()
        self._finite_steps = [*filter(metrics.is_finite, steps)]
        epoch = (window.step + self.windows.shift) * self._batch_size / self._num_examples
        record = {"step": window.step, "epoch": epoch, **metrics.summarize(self._finite_steps or steps)}
        if self._max_skips:
            record["skipped"] = len(steps) - len(self._finite_steps)
            self.progress = self.progress.replace(skipped=bad_in_a_row[-1])
        if self._window_began is not None:
            images, seconds = len(steps) * self._batch_size, ended - self._window_began
            record["images_per_second"] = images / seconds
            self.progress = self.progress.timed(images=images, seconds=seconds)
        if window.evaluation:
            val = scores(jax.device_get(window.evaluation))
            ended = time.monotonic()
            if not math.isfinite(val["loss"]):
                cause = "The parameters have grown too large: " + nonfinite.LOWER
                raise self._error("the validation loss", window=window, step=window.step, cause=cause)
            record.update({f"val_{key}": value for key, value in val.items() if not key.endswith("interval")})
            min_delta = self._config.early_stopping.min_delta
            self.progress = self.progress.evaluated(window.step, val, min_delta=min_delta)
        self._window_began = ended
        return record

    def _read(self, window):
        """The rows of `window`, the metrics of its steps, and for each step the number of bad ones in a row up to it.

        Raises NonFiniteError where a step is not finite and may not be skipped.
        """
        rows = jax.device_get(window.metrics)[window_rows(window.start, window.step, window=self.windows.log_every)]
        steps = metrics.unpack(rows)
        bad_in_a_row = nonfinite.bad_in_a_row(steps, before=self.progress.skipped)
        bad = next((index for index, count in enumerate(bad_in_a_row) if count > self._max_skips), None)
        if bad is not None:
            before = [*self._finite_steps, *filter(metrics.is_finite, steps[:bad])]
            cause = nonfinite.likely_cause([*before, steps[bad]], precision=self._config.precision)
            what = nonfinite.what_is_bad(steps[bad])
            raise self._error(what, window=window, step=window.start + bad + 1, cause=cause)
        return rows, steps, bad_in_a_row

    def _error(self, what, *, window, step, cause):
        bounds, good = (window.start + 1, window.step), self._checkpoints.evaluated_steps()
        return nonfinite.non_finite(what, step=step, window=bounds, cause=cause, good=good)

    def _save(self, window, *, rows, val_accuracy):
        seconds = self._seconds_before + time.monotonic() - self._started
        self.progress = self.progress.replace(seconds=seconds, rows=rows)
        self._log.sync()
        state, progress = window.state, self.progress.to_json()
        self._checkpoints.save(state, step=window.step, progress=progress, val_accuracy=val_accuracy)
