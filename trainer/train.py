"""The training loop: the only one.

An experiment (see `trainer.experiment`) -> state, new or restored -> batches, steps, evaluation, log, snapshots
-> the best snapshot restored -> the test split opened, once -> result.json.
"""

import collections
import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from trainer import config as config_lib
from trainer import metrics, optim, report, writers
from trainer import result as result_lib
from trainer import state as state_lib
from trainer import workdir as workdir_lib
from trainer.calls import first_carry, stacked
from trainer.checkpoint import Snapshots
from trainer.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from trainer.experiment import Experiment, Shared, build, validate
from trainer.progress import Progress

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
) -> dict[str, Any]:
    """Trains what `config` says into `workdir`; returns what `result.json` holds.

    Called again with the same arguments it goes on where it was, and ends with bit for bit the
    parameters of a run that was never interrupted; a finished run is not run again.
    `on_config_change`, "refuse" or "accept", is for a workdir that holds a run of another config.
    judge: the splits that the best snapshot is judged on; without "test" that stays sealed, and `result.json` has
    None for it. shared: what the runs of this process have in common.
    Raises a LinseedError, whose message is one line, for all that a user can mend.
    """
    started = time.monotonic()
    validate(config)
    with workdir_lib.lock(workdir):
        changed = workdir_lib.check_config(workdir, config, on_change=on_config_change)
        result = None if changed else workdir_lib.read_result(workdir)
        if result and (result["test"] or "test" not in judge):
            writer.say(f"already finished: {workdir / workdir_lib.RESULT}")
        else:
            experiment = build(config, workdir, shared=shared or Shared())
            writer.say(experiment.description)
            with Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest) as snapshots:
                state, progress = _restore(experiment, snapshots, writer=writer)
                workdir_lib.write_config(workdir, config)
                log = writers.JsonLines(workdir / workdir_lib.METRICS, resume_step=int(state.step))
                with contextlib.closing(log), contextlib.closing(writer):
                    state, progress = _train(
                        config,
                        experiment,
                        state=state,
                        progress=progress,
                        snapshots=snapshots,
                        log=log,
                        writer=writer,
                        started=started,
                    )
                result = _evaluate_best(
                    experiment, snapshots, state=state, progress=progress, judge=judge, writer=writer
                )
            result["config_sha256"] = config_lib.sha256(config)
            (workdir / workdir_lib.REPORT).unlink(missing_ok=True)
            workdir_lib.write_whole(workdir / workdir_lib.RESULT, json.dumps(result, indent=2))
        if not (workdir / workdir_lib.REPORT).exists():
            report.write(workdir)
        return result


def _restore(experiment, snapshots, *, writer):
    """The state to go on from (host arrays), and progress."""
    devices = experiment.parallel.num_devices
    restored = snapshots.restore_latest(experiment.state)
    if restored is None:
        return experiment.state, Progress(fingerprint=experiment.fingerprint, num_devices=devices)
    state, progress = restored[0], Progress(**restored[1])
    _check_same_data(experiment, progress)
    # The rate and the decay are the config's: it may have been changed.
    state = state.replace(opt_state=optim.with_hyperparams(state.opt_state, **experiment.hyperparams))
    writer.say(f"resuming after step {int(state.step):,}")
    if progress.num_devices != devices:
        writer.say(
            f"this run began on {progress.num_devices} devices and goes on with {devices}: dropout draws anew and sums "
            "round otherwise, so that the result will not be the same bit for bit"
        )
    return state, progress


def _check_same_data(experiment, progress):
    # Other splits would put images that this run is judged on into its training.
    if progress.fingerprint != experiment.fingerprint:
        raise DataError(
            "the train and validation splits are not those that this run began with; restore the data and "
            "config.data, or choose another --workdir"
        )


def _train(config, experiment, *, state, progress, snapshots, log, writer, started):
    """The loop. Returns the final state (on the devices) and progress.

    The host runs ahead of the devices, by at most `AHEAD` calls. A window of steps ends at a log or an evaluation; what
    it came to is read, logged and saved by `finish` while the devices are at the calls that follow.
    """
    parallel, total_steps, batch_size = experiment.parallel, experiment.total_steps, experiment.batch_size
    step = start = int(state.step)
    seconds_before = progress.seconds
    carry = parallel.replicate(first_carry(state, window=config.log_every_steps))
    resident = parallel.replicate(experiment.feed.resident)
    counts = [parallel.replicate(np.int32(count)) for count in range(config.steps_per_call + 1)]
    window_began = None  # the first window waits for the compiler and is not timed

    def finish(window):
        """Reads, logs and saves what the window came to, unless it is not finite."""
        nonlocal progress, window_began
        rows = jax.device_get(window.rows)[np.arange(window.start, window.step) % config.log_every_steps]
        steps = metrics.unpack(rows)
        ready = time.monotonic()
        span = (window.start + 1, window.step)
        bad = metrics.first_non_finite(steps)
        if bad is not None:
            what = f"the loss, the gradient or the update of step {window.start + bad + 1}"
            raise _non_finite(what, window=span, snapshots=snapshots)
        epoch = window.step * batch_size / len(experiment.train.labels)
        record = {"step": window.step, "epoch": epoch, **metrics.summarize(steps)}
        if window_began is not None:
            images, seconds = len(steps) * batch_size, ready - window_began
            record["images_per_second"] = images / seconds
            progress = progress.timed(images=images, seconds=seconds)
        if window.evaluation:
            val = metrics.means(jax.device_get(window.evaluation))
            ready = time.monotonic()
            if not math.isfinite(val["loss"]):
                raise _non_finite("the validation loss", window=span, snapshots=snapshots)
            record.update({f"val_{key}": value for key, value in val.items()})
            progress = progress.evaluated(window.step, val, min_delta=config.early_stopping.min_delta)
        window_began = ready
        log.write(record)
        writer.write(record)
        if window.evaluation:
            progress = progress.at(seconds=seconds_before + time.monotonic() - started)
            snapshots.save(window.state, step=window.step, progress=progress.to_json(), val_accuracy=val["accuracy"])

    waiting, calls = None, collections.deque()  # the window to finish; the calls under way
    writer.start(step=step, total_steps=total_steps)
    with jax.transfer_guard("disallow"), contextlib.closing(experiment.feed.batches(step)) as batches:
        while step < total_steps and not _is_stale(config, progress):
            stop = _next_stop(step, config.log_every_steps, experiment.eval_every_steps, total_steps)
            count = min(config.steps_per_call, stop - step)
            batch = parallel.shard(stacked([next(batches) for _ in range(count)], steps_per_call=config.steps_per_call))
            carry, made = experiment.train_steps(carry, batch, resident, counts[count])
            step += count
            writer.advance(step)
            calls.append(made)
            if len(calls) > AHEAD:
                done = jax.block_until_ready(calls.popleft())
                if waiting and done is waiting.made:
                    finish(waiting)
                    waiting = None
            if step < stop:
                continue
            if waiting:
                finish(waiting)
            waiting, evaluation, kept = None, None, None
            if step % experiment.eval_every_steps == 0 or step == total_steps:
                weights = state_lib.evaluated_weights(carry["state"])
                evaluation = experiment.evaluate.start(weights, experiment.val)
                kept = _copy(carry["state"])  # the next call gives up the original
            waiting, start = _Window(start, step, made, _copy(carry["window"]), evaluation, kept), step
            if evaluation and config.early_stopping.patience:  # whether to go on depends on it
                finish(waiting)
                waiting = None
        if waiting:
            finish(waiting)
    snapshots.wait()
    return carry["state"], progress


class _Window(NamedTuple):
    """Steps start + 1 to step, the last made by the call that gave `made`.

    rows: their metrics. evaluation, state: an evaluation's sums and a copy of the state, or None where there is none.
    """

    start: int
    step: int
    made: jax.Array
    rows: jax.Array
    evaluation: list | None
    state: state_lib.TrainState | None


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _next_stop(step, log_every, eval_every, total_steps):
    """The next step at which a window ends."""
    return min(total_steps, *(step - step % every + every for every in (log_every, eval_every)))


def _is_stale(config, progress):
    return 0 < config.early_stopping.patience <= progress.stale_evaluations


def _non_finite(what, *, window, snapshots):
    good = max(snapshots.steps(), default=None)
    kept = f"the snapshot of step {good} is sound" if good else "there is no snapshot yet"
    return NonFiniteError(
        f"{what} is not finite (logged window: steps {window[0]} to {window[1]}); {kept}. Lower config.optimizer.lr, "
        "lengthen config.schedule.warmup_epochs or set config.optimizer.clip_norm, and start in a new --workdir"
    )


def _evaluate_best(experiment, snapshots, *, state, progress, judge, writer):
    """Restores the best snapshot, opens the test split for it if it is to be judged, and puts the result together."""
    best, best_progress = snapshots.restore_best(experiment.state)
    best_step, weights = int(best.step), state_lib.evaluated_weights(best)
    if best_step != progress.best_step:
        writer.say(f"the best snapshot, of step {progress.best_step}, is lost; that of step {best_step} stands in")
    test = None
    if "test" in judge:
        test_split = experiment.test.open(by="train", which="best", step=best_step)
        test = experiment.evaluate(experiment.parallel.replicate(weights), test_split)
    result = result_lib.assemble(
        progress=progress,
        best_step=best_step,
        val=best_progress["val"],
        test=test,
        test_openings=experiment.test.openings,
        steps=int(jax.device_get(state.step)),
        total_steps=experiment.total_steps,
    )
    result["params_sha256"] = result_lib.params_sha256(jax.device_get(state.params))
    result["best_params_sha256"] = result_lib.params_sha256(weights["params"])
    return result


# The weights that `which` names: {"params", "model_state"} of a state, {} where the run kept none.
WEIGHTS = {
    "best": state_lib.evaluated_weights,
    "ema": lambda state: state.ema,
    "latest": lambda state: {"params": state.params, "model_state": state.model_state},
    "snapshots": state_lib.evaluated_weights,
}


def evaluate_snapshot(workdir: Path, *, which: str, split: str) -> dict[str, Any]:
    """Evaluates a snapshot of the run in `workdir`.

    which: "best" (the weights that won on validation), "latest" (the parameters of the newest
    snapshot) or "ema" (its moving average). split: "val" or "test"; opening test is recorded.
    Returns `accuracy`, `loss`, `examples`, `step`, `which`, `split` and `test_openings`.
    """
    config = read_run(workdir)
    with workdir_lib.lock(workdir):
        experiment, [(step, weights)] = restore_weights(config, workdir, which=which)
        data = experiment.val if split == "val" else experiment.test.open(by="evaluate", which=which, step=step)
        figures = experiment.evaluate(experiment.parallel.replicate(weights), data)
    return {**figures, "step": step, "which": which, "split": split, "test_openings": experiment.test.openings}


def read_run(workdir: Path) -> ml_collections.ConfigDict:
    """The config that ran in `workdir`. Raises WorkdirError where there is none, ConfigError where it is not valid."""
    config = workdir_lib.read_config(workdir)
    validate(config)
    return config


def restore_weights(
    config: ml_collections.ConfigDict, workdir: Path, *, which: str
) -> tuple[Experiment, list[tuple[int, dict[str, Any]]]]:
    """The experiment in `workdir`, which the caller has locked, and the `(step, weights)` to judge, oldest first.

    which: as for `evaluate_snapshot`, or "snapshots" for all that are sound. weights: {"params", "model_state"},
    host arrays. Raises CheckpointError where there is no snapshot, ConfigError where there is no moving average,
    DataError where the data are not those of the run.
    """
    experiment = build(config, workdir, shared=Shared())
    found = []
    with Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest) as snapshots:
        if which == "snapshots":
            restored = snapshots.restore_all(experiment.state)
        else:
            restore = snapshots.restore_best if which == "best" else snapshots.restore_latest
            restored = filter(None, [restore(experiment.state)])
        for state, progress in restored:
            _check_same_data(experiment, Progress(**progress))
            found.append((int(state.step), WEIGHTS[which](state)))
    if not found:
        raise CheckpointError(f"{workdir} has no snapshot yet; train first")
    if not found[0][1]:
        raise ConfigError(f"{workdir} kept no moving average (config.ema_decay=0); use --which=best or latest")
    return experiment, found
