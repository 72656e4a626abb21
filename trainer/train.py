"""The training loop: the only one, with all of its wiring.

config -> data and splits -> statistics -> durations in steps -> model, schedule, tx, augment, loss
-> compiled steps -> state, new or restored -> batches, steps, evaluation, snapshots
-> the best snapshot restored -> the test split opened, once -> result.json.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
from trainer import config as config_lib
from trainer import losses, metrics, optim, report, schedules, writers
from trainer import state as state_lib
from trainer import workdir as workdir_lib
from trainer.checkpoint import Snapshots
from trainer.data import augment, pipeline, sources, splits, stats
from trainer.errors import CheckpointError, ConfigError, NonFiniteError
from trainer.evaluate import evaluate
from trainer.parallel import AXIS, DataParallel
from trainer.progress import Progress
from trainer.step import make_eval_step, make_train_step

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


class Experiment(NamedTuple):
    """A config made real: data, state and compiled steps. Built by `build`."""

    train: splits.Split
    val: splits.Split
    test: splits.SealedTest
    total_steps: int
    eval_every_steps: int
    parallel: DataParallel
    state: state_lib.TrainState  # before the first step, host arrays
    train_step: Callable  # (state, batch) -> (state, metrics)
    evaluate: Callable  # (weights, split) -> loss, accuracy, examples
    description: str


def build(config: ml_collections.ConfigDict, workdir: Path) -> Experiment:
    """Everything between a valid config and the first step."""
    parallel = DataParallel(config.parallel.backend, devices=jax.devices())
    parallel.check_divides(config.data.batch_size, key="config.data.batch_size")
    parallel.check_divides(config.eval.batch_size, key="config.eval.batch_size")

    # Data. Validation is carved from train, test stays sealed, statistics are those of the train split in use.
    source = sources.load(**config.data.source)
    train, val = splits.carve_validation(source, fraction=config.data.val_fraction, seed=config.data.split_seed)
    statistics = stats.statistics(
        train,
        config.data.normalize,
        mean=config.data.mean,
        std=config.data.std,
        cache=workdir / workdir_lib.STATISTICS,
    )
    normalize = stats.make_normalize(statistics)
    image_shape = train.images.shape[1:]

    # Durations become steps here, once.
    to_steps = functools.partial(
        schedules.epochs_to_steps, num_examples=len(train.labels), batch_size=config.data.batch_size
    )
    total_steps = max(1, to_steps(config.horizon.epochs))
    warmup_steps = to_steps(config.schedule.warmup_epochs)

    # Model and optimiser.
    schedule_kwargs = {key: value for key, value in config.schedule.items() if key != "warmup_epochs"}
    optimizer_kwargs = {key: value for key, value in config.optimizer.items() if key != "lr"}
    schedule = schedules.make_schedule(
        **schedule_kwargs, lr=config.optimizer.lr, warmup_steps=warmup_steps, total_steps=total_steps
    )
    tx = optim.make_tx(**optimizer_kwargs, schedule=schedule)
    try:
        model = models.build(
            **config.model, num_classes=len(source.class_names), dtype=DTYPES[config.precision], axis_name=AXIS
        )
        state = state_lib.create(model, tx, seed=config.seed, image_shape=image_shape, ema=config.ema_decay > 0)
    except ValueError as error:
        size = "x".join(map(str, image_shape))
        raise ConfigError(f"config.model '{config.model.name}' does not fit {size} images: {error}") from error

    # The two steps. Validation and test are judged by the same loss, without label smoothing.
    train_step = make_train_step(
        model=model,
        tx=tx,
        loss=losses.make_loss(**config.loss, label_smoothing=config.label_smoothing),
        augment=augment.make_augment(config.data.augment),
        normalize=normalize,
        ema_decay=config.ema_decay,
    )
    eval_step = make_eval_step(
        model=model, loss=losses.make_loss(**config.loss, label_smoothing=0.0), normalize=normalize
    )
    eval_step = parallel.compile(eval_step, donate=False)

    description = "\n".join(
        [
            *(f"skipped {line}" for line in source.skipped),
            f"{config.data.source.name}: {len(train.labels):,} train, {len(val.labels):,} val, test sealed; "
            f"{len(source.class_names)} classes of {'x'.join(map(str, image_shape))} images",
            f"{config.model.name}: {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters; "
            f"{config.optimizer.name}, {config.schedule.name} over {total_steps:,} steps, {warmup_steps:,} of them "
            f"warm-up; {parallel.num_devices} x {jax.devices()[0].device_kind}, {config.parallel.backend}",
        ]
    )
    return Experiment(
        train=train,
        val=val,
        test=splits.SealedTest(source.open_test, record=workdir / workdir_lib.OPENINGS),
        total_steps=total_steps,
        eval_every_steps=max(1, to_steps(config.eval.every_epochs)),
        parallel=parallel,
        state=state,
        train_step=parallel.compile(train_step, donate=True),
        evaluate=functools.partial(evaluate, eval_step, batch_size=config.eval.batch_size, parallel=parallel),
        description=description,
    )


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, *, writer: writers.Quiet, on_config_change: str
) -> dict[str, Any]:
    """Trains what `config` says into `workdir`; returns what `result.json` holds.

    Called again with the same arguments it goes on where it was, and ends with bit for bit the
    parameters of a run that was never interrupted; a finished run is not run again.
    `on_config_change`, "refuse" or "accept", is for a workdir that holds a run of another config.
    Raises a LinseedError, whose message is one line, for all that a user can mend.
    """
    started = time.monotonic()
    config_lib.validate(config, models=models.MODELS)
    with workdir_lib.lock(workdir):
        workdir_lib.claim(workdir, config, on_change=on_config_change)
        result = workdir_lib.read_result(workdir)
        if result:
            writer.say(f"already finished: {workdir / workdir_lib.RESULT}")
            return result
        experiment = build(config, workdir)
        writer.say(experiment.description)
        with Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest) as snapshots:
            state, progress = _train(config, workdir, experiment, snapshots, writer, started)
            result = _judge_best(config, experiment, snapshots, state, progress)
        workdir_lib.write_whole(workdir / workdir_lib.RESULT, json.dumps(result, indent=2))
        report.write(workdir)
        return result


def _train(config, workdir, experiment, snapshots, writer, started):
    """The loop. Returns the final state (on the devices) and progress."""
    train, parallel, total_steps = experiment.train, experiment.parallel, experiment.total_steps
    batch_size = config.data.batch_size
    restored = snapshots.restore_latest(experiment.state)
    state, progress = (restored[0], Progress(**restored[1])) if restored else (experiment.state, Progress())
    step = window_start = int(state.step)
    seconds_before = progress.seconds
    if step:
        writer.say(f"resuming after step {step:,}")
    state = parallel.replicate(state)
    log = writers.JsonLines(workdir / workdir_lib.METRICS, resume_step=step)
    window, window_began = [], None  # the first window waits for the compiler and is not timed
    writer.start(step=step, total_steps=total_steps)
    try:
        with jax.transfer_guard("disallow"):
            while step < total_steps and not _is_stale(config, progress):
                batch = pipeline.train_batch(train, step, seed=config.seed, batch_size=batch_size)
                state, step_metrics = experiment.train_step(state, parallel.shard(batch))
                window.append(step_metrics)
                step += 1
                writer.advance(step)
                evaluates = step % experiment.eval_every_steps == 0 or step == total_steps
                if not evaluates and step % config.log_every_steps:
                    continue

                # The one place where the host waits for the devices.
                window = jax.device_get(window)
                _check_finite(window, window_start, snapshots, workdir)
                record = {"step": step, "epoch": step * batch_size / len(train.labels), **metrics.summarize(window)}
                if window_began is not None:
                    images, seconds = len(window) * batch_size, time.monotonic() - window_began
                    record["images_per_second"] = images / seconds
                    progress = progress.timed(images=images, seconds=seconds)
                if evaluates:
                    val = experiment.evaluate(state_lib.evaluated_weights(state), experiment.val)
                    record.update({f"val_{key}": value for key, value in val.items()})
                    progress = progress.evaluated(step, val, min_delta=config.early_stopping.min_delta)
                log.write(record)
                writer.write(record)
                if evaluates:
                    progress = progress.at(seconds=seconds_before + time.monotonic() - started)
                    snapshots.save(state, step=step, progress=progress.to_json(), val_accuracy=val["accuracy"])
                window, window_start, window_began = [], step, time.monotonic()
        snapshots.wait()
    finally:
        log.close()
        writer.close()
    return state, progress


def _is_stale(config, progress):
    return 0 < config.early_stopping.patience <= progress.stale_evaluations


def _check_finite(window, window_start, snapshots, workdir):
    bad = metrics.first_non_finite(window)
    if bad is None:
        return
    good = max(snapshots.steps(), default=None)
    snapshot = f"the snapshot of step {good} is sound" if good else "there is no snapshot yet"
    raise NonFiniteError(
        f"the loss or the gradient became non-finite at step {window_start + bad + 1} (logged window: steps "
        f"{window_start + 1} to {window_start + len(window)}); {snapshot}. Lower config.optimizer.lr, lengthen "
        "config.schedule.warmup_epochs or set config.optimizer.clip_norm, and start in a new --workdir"
    )


def _judge_best(config, experiment, snapshots, state, progress):
    """Restores the best snapshot, opens the test split for it, and puts the result together."""
    restored = snapshots.restore_best(experiment.state)
    if restored is None:
        raise CheckpointError("no snapshot of this run is sound; run the same command again to train anew")
    best, best_progress = restored
    best_step, best_weights = int(best.step), state_lib.evaluated_weights(best)
    test_split = experiment.test.open(by="train", which="best", step=best_step)
    test = experiment.evaluate(experiment.parallel.replicate(best_weights), test_split)
    final_step = int(jax.device_get(state.step))
    stop_reason = "horizon reached"
    if final_step < experiment.total_steps:
        stop_reason = f"early stopping: {progress.stale_evaluations} evaluations without a better val accuracy"
    return {
        "best_step": best_step,
        "steps": final_step,
        "stop_reason": stop_reason,
        "val": best_progress["val"],
        "test": test,
        "test_openings": experiment.test.openings,
        "params_sha256": params_sha256(jax.device_get(state.params)),
        "best_params_sha256": params_sha256(best_weights["params"]),
        "seconds": progress.seconds,
        "images_per_second": progress.timed_images / progress.timed_seconds if progress.timed_seconds else None,
        "devices": [device.device_kind for device in jax.devices()],
        "versions": _versions(),
        "config_sha256": config_lib.sha256(config),
    }


def evaluate_snapshot(workdir: Path, *, which: str, split: str) -> dict[str, Any]:
    """Judges a snapshot of the run in `workdir`.

    which: "best" (the weights that won on validation), "latest" (the parameters of the newest
    snapshot) or "ema" (its moving average). split: "val" or "test"; opening test is recorded.
    Returns `accuracy`, `loss`, `examples`, `step`, `which`, `split` and `test_openings`.
    """
    config = workdir_lib.read_config(workdir)
    config_lib.validate(config, models=models.MODELS)
    with workdir_lib.lock(workdir):
        experiment = build(config, workdir)
        with Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest) as snapshots:
            restore = snapshots.restore_best if which == "best" else snapshots.restore_latest
            restored = restore(experiment.state)
        if restored is None:
            raise CheckpointError(f"{workdir} has no snapshot yet; train first")
        state = restored[0]
        if which == "ema" and not state.ema:
            raise ConfigError("this run kept no moving average (config.ema_decay=0); use --which=best or latest")
        weights = {
            "best": state_lib.evaluated_weights(state),
            "latest": {"params": state.params, "model_state": state.model_state},
            "ema": state.ema,
        }[which]
        step = int(state.step)
        data = experiment.val if split == "val" else experiment.test.open(by="evaluate", which=which, step=step)
        judged = experiment.evaluate(experiment.parallel.replicate(weights), data)
    return {**judged, "step": step, "which": which, "split": split, "test_openings": experiment.test.openings}


def params_sha256(params) -> str:
    """sha256 over path, dtype, shape and bytes of every parameter (host arrays)."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _versions():
    names = ("linseed", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
