"""A config made real: all the wiring between a valid config and the first step.

data and splits -> statistics -> durations in steps -> model, schedule, tx, augment, loss -> state and compiled steps.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

import models
from trainer import losses, optim, schedules
from trainer import state as state_lib
from trainer import workdir as workdir_lib
from trainer.data import augment, sources, splits, stats
from trainer.errors import ConfigError
from trainer.evaluate import evaluate
from trainer.parallel import AXIS, DataParallel
from trainer.step import make_eval_step, make_train_step

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


class Experiment(NamedTuple):
    """A config made real: data, state and compiled steps. Built by `build`."""

    train: splits.Split
    val: splits.Split
    fingerprint: str  # of train and val
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
    if total_steps >= 2**31:
        raise ConfigError(f"config.horizon.epochs={config.horizon.epochs:g} is {total_steps:,} steps; the most is 2^31")
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

    # The two steps. Validation and test are measured by the same loss, without label smoothing.
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
            f"{config.data.source.name}: {len(train.labels):,} train, {len(val.labels):,} val "
            f"({'carved from train' if source.val is None else 'of its own: config.data.val_fraction has no part'}), "
            "test sealed; "
            f"{len(source.class_names)} classes of {'x'.join(map(str, image_shape))} images",
            f"{config.model.name}: {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters; "
            f"{config.optimizer.name}, {config.schedule.name} over {total_steps:,} steps, {warmup_steps:,} of them "
            f"warm-up; {parallel.num_devices} x {jax.devices()[0].device_kind}, {config.parallel.backend}",
        ]
    )
    return Experiment(
        train=train,
        val=val,
        fingerprint=stats.fingerprint(train, val),
        test=splits.SealedTest(source.open_test, record=workdir / workdir_lib.OPENINGS),
        total_steps=total_steps,
        eval_every_steps=max(1, to_steps(config.eval.every_epochs)),
        parallel=parallel,
        state=state,
        train_step=parallel.compile(train_step, donate=True),
        evaluate=functools.partial(evaluate, eval_step=eval_step, batch_size=config.eval.batch_size, parallel=parallel),
        description=description,
    )
