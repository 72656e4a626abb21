"""The training loop: the only one.

An experiment (see `trainer.experiment`) -> state, new or restored -> batches, steps, evaluation, log, snapshots
-> the best snapshot restored -> the test split opened, once -> result.json.
"""

import collections
import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linseed.trainer import resume
from linseed.trainer.config import validate as config_lib
from linseed.trainer.errors import NonFiniteError
from linseed.trainer.evaluation import evaluate_best
from linseed.trainer.experiment import Shared, build, validate
from linseed.trainer.run import report, writers
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.runtime import processes, signals, watchdog
from linseed.trainer.step import metrics, nonfinite
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.multi_step import first_carry, settled, stacked, window_rows

# Calls of the train step that may be under way: enough to keep the devices at work while the host logs and saves, few
# enough for their batches to fit.
AHEAD = 4


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    writer: writers.Quiet,
    on_config_change: str,
    judge: Sequence[str] = ("val", "test"),
    shared: Shared | None = None,
    stop: Callable[[], int] = signals.never,
) -> dict[str, Any]:
    """Trains what `config` says into `workdir`; returns what `result.json` holds.

    Called again with the same arguments it goes on where it was, and ends with bit for bit the
    parameters of a run that was never interrupted; a finished run is not run again.
    `on_config_change`, "refuse" or "accept", is for a workdir that holds a run of another config.
    judge: the splits that the best snapshot is judged on; without "test" that stays sealed, and `result.json` has
    None for it. shared: what the runs of this process have in common. stop: asked before each call of the devices and
    once more before the test split is opened; where it returns a signal's number in place of 0, the step that was
    reached is saved and `stopping.Stopped` is raised. Once it did, it has to go on doing so.
    Raises a LinseedError, whose message is one line, for all that a user can mend.
    """
    started = time.monotonic()
    validate(config)
    with processes.workdir_of(workdir) as workdir, workdir_lib.lock(workdir):
        changed, result = resume.found(workdir, config, on_config_change=on_config_change)
        if result and (result["test"] or "test" not in judge):
            writer.say(f"already finished: {workdir / workdir_lib.RESULT}")
        else:
            experiment = build(config, workdir, shared=shared or Shared())
            writer.say(experiment.description)
            processes.check_same({"config": config_lib.sha256(config), "data": experiment.fingerprint})
            stop = processes.AgreedStop(stop, ahead=AHEAD)
            with (
                watchdog.watched(config.guard.watchdog_minutes) as alive,
                resume.open_snapshots(workdir, config) as snapshots,
            ):
                state, progress = _train_through(
                    config,
                    experiment,
                    workdir,
                    anew=changed and not snapshots.steps(),
                    snapshots=snapshots,
                    writer=writer,
                    started=started,
                    stop=stop,
                    alive=alive,
                )
                if number := stop.last():
                    raise signals.Stopped(number, after_step=int(state.step))
                alive(compiles=True)
                result = evaluate_best(
                    experiment, snapshots, state=state, progress=progress, judge=judge, writer=writer
                )
            result["config_sha256"] = config_lib.sha256(config)
            (workdir / workdir_lib.REPORT).unlink(missing_ok=True)
            workdir_lib.write_whole(workdir / workdir_lib.RESULT, json.dumps(result, indent=2))
        if processes.is_writer() and not (workdir / workdir_lib.REPORT).exists():
            report.write(workdir)
        return result


def _train_through(config, experiment, workdir, *, anew, snapshots, writer, started, stop, alive):
    """`_train` from where the run is, and again from an earlier step as often as config.guard allows it."""
    section = {key: config.guard[key] for key in ("on_non_finite", "max_times", "lr_factor")}
    rollbacks = Rollbacks(workdir / workdir_lib.ROLLBACKS, **section)
    if anew:
        rollbacks.forget()
    while True:
        alive(compiles=True)
        state, progress = resume.restore(experiment, snapshots, rollbacks=rollbacks, writer=writer)
        workdir_lib.write_config(workdir, config)
        log = resume.open_log(workdir, step=int(state.step), progress=progress)
        try:
            with contextlib.closing(log), contextlib.closing(writer):
                return _train(
                    config,
                    experiment,
                    state=state,
                    progress=progress,
                    snapshots=snapshots,
                    log=log,
                    writer=writer,
                    started=started,
                    stop=stop,
                    alive=alive,
                )
        except NonFiniteError as error:
            writer.say(processes.from_writer(functools.partial(rollbacks.roll_back, snapshots, error)))
            started = time.monotonic()  # the time until the snapshot is in its progress


def _train(config, experiment, *, state, progress, snapshots, log, writer, started, stop, alive):
    """The loop. Returns the last state (on the devices) and progress.

    The host runs ahead of the devices, by at most `AHEAD` calls. A window of steps ends at a log or an evaluation; what
    it came to is read, logged and saved by `finish` while the devices are at the calls that follow. Where `stop` ends
    the loop within a window, its rows are saved with the state.
    """
    parallel, total_steps, batch_size = experiment.parallel, experiment.total_steps, experiment.batch_size
    log_every, eval_every = config.log_every_steps, experiment.eval_every_steps
    step = int(state.step)
    within = min(step % log_every, step % eval_every)  # of the window under way; its length may have been changed
    rows = progress.rows[max(0, len(progress.rows) - within) :]
    start = step - len(rows)
    seconds_before = progress.seconds
    carry = parallel.replicate(first_carry(state, window=log_every, rows=rows))
    resident = parallel.replicate(experiment.feed.resident)
    placed_count = functools.cache(lambda count: parallel.replicate(np.int32(count)))
    window_began = None  # the first window waits for the compiler and is not timed
    skips = config.guard.max_times if config.guard.on_non_finite == "skip" else 0
    sound = []  # the steps of the window before that are finite

    def read(window):
        """The rows of a window and the metrics of its steps, unless one is not finite and may not be skipped."""
        rows = jax.device_get(window.rows)[window_rows(window.start, window.step, window=log_every)]
        steps = metrics.unpack(rows)
        in_a_row = nonfinite.bad_in_a_row(steps, before=progress.skipped)
        bad = next((index for index, count in enumerate(in_a_row) if count > skips), None)
        if bad is not None:
            before = [*sound, *filter(metrics.is_finite, steps[:bad])]
            raise nonfinite.non_finite(
                nonfinite.what_is_bad(steps[bad]),
                step=window.start + bad + 1,
                window=(window.start + 1, window.step),
                cause=nonfinite.likely_cause([*before, steps[bad]], precision=config.precision),
                good=snapshots.evaluated_steps(),
            )
        return rows, steps, in_a_row

    def finish(window):
        """Reads, logs and saves what the window came to, unless it is not finite."""
        nonlocal progress, window_began, sound
        _, steps, in_a_row = read(window)
        ready = window.ended or time.monotonic()
        sound = [*filter(metrics.is_finite, steps)]
        epoch = window.step * batch_size / len(experiment.train.labels)
        record = {"step": window.step, "epoch": epoch, **metrics.summarize(sound or steps)}
        if skips:
            record["skipped"] = len(steps) - len(sound)
            progress = progress.skipping(in_a_row[-1])
        if window_began is not None:
            images, seconds = len(steps) * batch_size, ready - window_began
            record["images_per_second"] = images / seconds
            progress = progress.timed(images=images, seconds=seconds)
        if window.evaluation:
            val = metrics.means(jax.device_get(window.evaluation))
            ready = time.monotonic()
            if not math.isfinite(val["loss"]):
                raise nonfinite.non_finite(
                    "the validation loss",
                    step=window.step,
                    window=(window.start + 1, window.step),
                    cause="The parameters have grown beyond reason: " + nonfinite.LOWER,
                    good=snapshots.evaluated_steps(),
                )
            record.update({f"val_{key}": value for key, value in val.items()})
            progress = progress.evaluated(window.step, val, min_delta=config.early_stopping.min_delta)
        window_began = ready
        log.write(record)
        progress = progress.logging(window.step)
        if window.evaluation:
            save(window, rows=[], val_accuracy=val["accuracy"])
        writer.write(record)  # last: it is the one that somebody else may break

    def save(window, *, rows, val_accuracy):
        nonlocal progress
        progress = progress.at(seconds=seconds_before + time.monotonic() - started).within(rows)
        log.sync()
        snapshots.save(window.state, step=window.step, progress=progress.to_json(), val_accuracy=val_accuracy)

    waiting, calls = None, collections.deque()  # the window to finish; the calls under way
    evaluated = False
    writer.start(step=step, total_steps=total_steps)
    with (
        jax.transfer_guard("disallow"),
        contextlib.closing(experiment.feed.batches(step)) as batches,
        settled(lambda: (list(calls), waiting)),
    ):
        while step < total_steps and not _is_stale(config, progress) and not stop():
            alive(compiles=not calls)
            end = _next_stop(step, log_every, eval_every, total_steps)
            count = min(config.steps_per_call, end - step)
            batch = parallel.shard(stacked([next(batches) for _ in range(count)], steps_per_call=config.steps_per_call))
            carry, made = experiment.train_steps(carry, batch, resident, placed_count(count))
            step += count
            writer.advance(step)
            calls.append(made)
            if len(calls) > AHEAD:
                done = jax.block_until_ready(calls.popleft())
                if waiting and done is waiting.made:
                    finish(waiting)
                    waiting = None
            if step < end:
                continue
            if waiting:
                finish(waiting)
            waiting, evaluation, kept, ended = None, None, None, None
            if step % eval_every == 0 or step == total_steps:
                alive(compiles=not evaluated)
                if not evaluated:  # the first one waits for the compiler, which is no training time
                    jax.block_until_ready(made)
                    ended, evaluated = time.monotonic(), True
                weights = state_lib.evaluated_weights(carry["state"])
                evaluation = experiment.evaluate.start(weights, experiment.val)
                kept = _copy(carry["state"])  # the next call gives up the original
            waiting, start = _Window(start, step, made, _copy(carry["window"]), evaluation, kept, ended), step
            if evaluation and config.early_stopping.patience:  # whether to go on depends on it
                finish(waiting)
                waiting = None
        alive()
        if waiting:
            finish(waiting)
        if step and step not in snapshots.steps():  # stopped between two evaluations
            window = _Window(start, step, None, carry["window"], None, carry["state"], None)
            save(window, rows=read(window)[0].tolist(), val_accuracy=None)
        alive()
        snapshots.wait()
    return carry["state"], progress


class _Window(NamedTuple):
    """Steps start + 1 to step, the last made by the call that gave `made`.

    rows: their metrics. evaluation, state: an evaluation's sums and a copy of the state, or None where there is none.
    ended: when the last step was done (`time.monotonic`), None where it is taken to be when the rows were read.
    """

    start: int
    step: int
    made: jax.Array
    rows: jax.Array
    evaluation: list | None
    state: state_lib.TrainState | None
    ended: float | None


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _next_stop(step, log_every, eval_every, total_steps):
    """The next step at which a window ends."""
    return min(total_steps, *(step - step % every + every for every in (log_every, eval_every)))


def _is_stale(config, progress):
    return 0 < config.early_stopping.patience <= progress.stale_evaluations
