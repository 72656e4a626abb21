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
from trainer import losses, optim, regularizers, schedules
from trainer import state as state_lib
from trainer import workdir as workdir_lib
from trainer.data import augment, pipeline, sources, splits, stats
from trainer.data.augment import mixing
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
    train_batch: Callable  # step -> host batch
    batch_size: int  # examples a step
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
    parts = config.accumulation_parts
    if config.data.batch_size:
        parallel.check_divides(config.data.batch_size, key="config.data.batch_size", parts=parts)
    parallel.check_divides(config.eval.batch_size, key="config.eval.batch_size", parts=1)

    # Data. Validation is carved from train, test stays sealed, statistics are those of the train split in use.
    source = sources.load(**config.data.source)
    train, val = splits.carve_validation(source, fraction=config.data.val_fraction, seed=config.data.split_seed)
    train = splits.part(train, examples=config.data.train_examples, seed=config.data.split_seed)
    statistics = stats.statistics(
        train,
        config.data.normalize,
        mean=config.data.mean,
        std=config.data.std,
        cache=workdir / workdir_lib.STATISTICS,
    )
    normalize = stats.make_normalize(statistics)
    image_shape = train.images.shape[1:]

    if config.data.batch_size:
        batch_size = config.data.batch_size
        train_batch = functools.partial(pipeline.train_batch, train, seed=config.seed, batch_size=batch_size)
    else:
        batch_size = len(train.labels)
        full_batch = pipeline.full_batch(train, multiple=parallel.num_devices * parts)
        train_batch = lambda step: full_batch  # noqa: E731

    # Durations become steps here, once.
    to_steps = functools.partial(schedules.durations_to_steps, num_examples=len(train.labels), batch_size=batch_size)
    total_steps = max(1, to_steps("horizon", config.horizon, total_steps=None)["steps"])
    if total_steps >= 2**31:
        raise ConfigError(f"config.horizon is {total_steps:,} steps; the most is 2^31")
    schedule_kwargs = to_steps("schedule", config.schedule, total_steps=total_steps)
    eval_every_steps = max(1, to_steps("eval", config.eval, total_steps=total_steps)["every_steps"])

    # Model and optimiser.
    optimizer_kwargs = dict(config.optimizer)
    base_lr, lr_per_batch = optimizer_kwargs.pop("lr"), optimizer_kwargs.pop("lr_per_batch")
    lr = schedules.scaled_lr(base_lr, batch_size=batch_size, lr_per_batch=lr_per_batch)
    schedule = schedules.make_schedule(**schedule_kwargs, lr=lr, total_steps=total_steps)
    tx = optim.make_tx(**optimizer_kwargs, schedule=schedule)
    regularizer = regularizers.make_regularizer(**config.regularizer, rules=config.optimizer.rules)
    try:
        model = models.build(
            **config.model, num_classes=len(source.class_names), dtype=DTYPES[config.precision], axis_name=AXIS
        )
        state = state_lib.create(model, tx, seed=config.seed, image_shape=image_shape, ema=config.ema_decay > 0)
    except ConfigError:
        raise
    except ValueError as error:
        size = "x".join(map(str, image_shape))
        raise ConfigError(f"config.model '{config.model.name}' does not fit {size} images: {error}") from error

    # The two steps. Validation and test are measured by the same loss, without label smoothing.
    train_step = make_train_step(
        model=model,
        tx=tx,
        loss=losses.make_loss(**config.loss, label_smoothing=config.label_smoothing),
        regularizer=regularizer,
        augment=augment.make_augment(config.data.augment),
        normalize=normalize,
        mix=mixing.make_mix(**config.data.mix, num_classes=len(source.class_names)),
        accumulation_parts=parts,
        ema_decay=config.ema_decay,
    )
    eval_step = make_eval_step(
        model=model, loss=losses.make_loss(**config.loss, label_smoothing=0.0), normalize=normalize
    )
    eval_step = parallel.compile(eval_step, donate=False)

    size = "x".join(map(str, image_shape))
    val_from = "carved from train" if source.val is None else "of its own: config.data.val_fraction has no part"
    description = "\n".join(
        [
            *(f"skipped {line}" for line in source.skipped),
            f"{config.data.source.name}: {len(train.labels):,} train, {len(val.labels):,} val ({val_from}), "
            f"test sealed; {len(source.class_names)} classes of {size} images",
            f"{config.model.name}: {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters; "
            f"{config.optimizer.name}, {config.schedule.name} over {total_steps:,} steps, "
            f"{schedule_kwargs['warmup_steps']:,} of them warm-up",
            f"{parallel.num_devices} x {jax.devices()[0].device_kind}, {config.parallel.backend}, {config.precision}",
        ]
    )
    if lr != base_lr:
        description += f"\nlr {base_lr:g} for a batch of {lr_per_batch} is {lr:g} for a batch of {batch_size}"
    return Experiment(
        train=train,
        val=val,
        fingerprint=stats.fingerprint(train, val),
        test=splits.SealedTest(source.open_test, record=workdir / workdir_lib.OPENINGS),
        train_batch=train_batch,
        batch_size=batch_size,
        total_steps=total_steps,
        eval_every_steps=eval_every_steps,
        parallel=parallel,
        state=state,
        train_step=parallel.compile(train_step, donate=True),
        evaluate=functools.partial(evaluate, eval_step=eval_step, batch_size=config.eval.batch_size, parallel=parallel),
        description=description,
    )
