"""A config made real: all the wiring between a valid config and the first step.

data and splits -> statistics -> durations in steps -> model, schedule, tx, augment, loss -> state and compiled steps.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linseed import models
from linseed.trainer.config import validate as config_lib
from linseed.trainer.data import augment, placement, sources, splits, stats
from linseed.trainer.data.augment import mixing
from linseed.trainer.data.dataset import Source
from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import chain, regularizers, schedules
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.runtime import processes
from linseed.trainer.runtime.data_parallel import AXIS, REPLICATED, SHARDED, DataParallel
from linseed.trainer.runtime.machine import memory_bytes
from linseed.trainer.runtime.onednn import CONVOLUTIONS
from linseed.trainer.step import data_init as whitening
from linseed.trainer.step import losses, nonfinite, tta
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.evaluator import Evaluator
from linseed.trainer.step.multi_step import make_train_steps
from linseed.trainer.step.remat import REMAT
from linseed.trainer.step.train_step import make_eval_step, make_logits, make_probe_step, make_train_step

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


class Experiment(NamedTuple):
    """A config made real: data, state and compiled steps. Built by `build`."""

    train: splits.Split
    val: splits.Split
    fingerprint: str  # of train and val
    num_classes: int
    test: splits.SealedTest
    feed: placement.Feed  # of train batches
    batch_size: int  # examples a step
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    schedule: Callable  # step -> learning rate; a `schedules.Plateau` where it follows the loss
    parallel: DataParallel
    hyperparams: dict[str, float]  # what `optim.with_hyperparams` takes
    state: state_lib.TrainState  # before the first step, host arrays
    train_steps: Callable  # (carry, batches, resident, count) -> (carry, step): what the loop calls
    train_step: Callable  # (state, batch) -> (state, metrics)
    probe_step: Callable  # (state, batch) -> measurements of the first step
    logits: Callable  # (weights, images) -> logits, per device, not compiled
    evaluate: Evaluator  # (weights, split) -> loss, accuracy, examples
    description: str


class Data(NamedTuple):
    """What a config's data section comes to."""

    source: Source
    train: splits.Split
    val: splits.Split
    fingerprint: str  # of train and val
    statistics: dict[str, np.ndarray]


class Programs(NamedTuple):
    """What is compiled for a config."""

    init: Callable  # root key -> (params, model_state, opt_state)
    logits: Callable  # of `make_logits`; to be compiled as a part of something
    train_steps: Callable
    train_step: Callable
    eval_step: Callable
    probe_step: Callable


class Shared:
    """What the runs of one process have in common: data that was read, steps that were compiled.

    Runs that differ in seed, learning rate, weight decay or, at a constant rate, in length, share all of it.
    """

    def __init__(self):
        self._made = {}

    def once(self, what: str, settings: Any, make: Callable[[], Any]) -> Any:
        """`make()`, or what it returned for the same `what` and `settings` (JSON) before."""
        key = what + json.dumps(settings, sort_keys=True)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def validate(config: ml_collections.ConfigDict):
    """Raises ConfigError, one line that names the cure, unless `config` can run."""
    config_lib.validate(config, models=models.MODELS)


def build(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> Experiment:
    """Everything between a valid config and the first step."""
    parallel = DataParallel(config.parallel.backend, devices=jax.devices())
    parts = config.accumulation_parts
    if config.data.batch_size:
        parallel.check_divides(config.data.batch_size, key="config.data.batch_size", parts=parts)
    parallel.check_divides(config.eval.batch_size, key="config.eval.batch_size", parts=1)

    data = _data(config, workdir, shared=shared)
    source, train, val = data.source, data.train, data.val
    image_shape = train.images.shape[1:]
    num_examples = len(train.labels)
    batch_size = config.data.batch_size or num_examples
    feed = placement.make_feed(
        train,
        val=val,
        placement=config.data.placement,
        seed=config.seed,
        batch_size=config.data.batch_size,
        multiple=parallel.num_devices * parts,
        shard_index=parallel.shard_index,
        shard_count=parallel.shard_count,
    )

    # Durations become steps here, once.
    to_steps = functools.partial(schedules.durations_to_steps, num_examples=num_examples, batch_size=batch_size)
    total_steps = max(1, to_steps("horizon", config.horizon, total_steps=None)["steps"])
    if total_steps >= 2**31:
        raise ConfigError(f"config.horizon is {total_steps:,} steps; the most is 2^31")
    schedule_kwargs = to_steps("schedule", config.schedule, total_steps=total_steps)
    eval_every_steps = max(1, to_steps("eval", config.eval, total_steps=total_steps)["every_steps"])

    optimizer = config.optimizer
    lr = schedules.scaled_lr(optimizer.lr, batch_size=batch_size, lr_per_batch=optimizer.lr_per_batch)
    hyperparams = {"lr": lr, "weight_decay": optimizer.get("weight_decay", 0.0)}  # lbfgs has none
    rules = rules_lib.in_steps(optimizer.rules, to_steps=functools.partial(to_steps, total_steps=total_steps))
    programs = _programs(
        config,
        data,
        rules=rules,
        schedule_kwargs=schedule_kwargs,
        total_steps=total_steps,
        parallel=parallel,
        shared=shared,
    )
    state = state_lib.create(programs.init, seed=config.seed, ema=config.ema_decay > 0)
    state = state.replace(opt_state=chain.with_hyperparams(state.opt_state, **hyperparams))

    size = "x".join(map(str, image_shape))
    val_from = "carved from train" if source.val is None else "of its own: config.data.val_fraction has no part"
    description = "\n".join(
        [
            *(f"skipped {line}" for line in source.skipped),
            f"{config.data.source.name}: {num_examples:,} train, {len(val.labels):,} val ({val_from}), "
            f"test sealed; {len(source.class_names)} classes of {size} images",
            f"{config.model.name}: {sum(leaf.size for leaf in jax.tree.leaves(state.params)):,} parameters; "
            f"{config.optimizer.name}, {config.schedule.name} over {total_steps:,} steps, "
            f"{schedule_kwargs['warmup_steps']:,} of them warm-up",
            f"{parallel.num_devices} x {jax.devices()[0].device_kind}, {config.parallel.backend}, {config.precision}"
            + (f", {parallel.shard_count} processes" if parallel.shard_count > 1 else ""),
        ]
    )
    if lr != optimizer.lr:
        description += (
            f"\nlr {optimizer.lr:g} for a batch of {optimizer.lr_per_batch} is {lr:g} for one of {batch_size}"
        )
    return Experiment(
        train=train,
        val=val,
        fingerprint=data.fingerprint,
        num_classes=len(source.class_names),
        test=splits.SealedTest(source.open_test, record=workdir / workdir_lib.OPENINGS),
        feed=feed,
        batch_size=batch_size,
        total_steps=total_steps,
        warmup_steps=schedule_kwargs["warmup_steps"],
        eval_every_steps=eval_every_steps,
        schedule=schedules.make_schedule(**schedule_kwargs, lr=lr, total_steps=total_steps),
        parallel=parallel,
        hyperparams=hyperparams,
        state=state,
        train_steps=programs.train_steps,
        train_step=programs.train_step,
        probe_step=programs.probe_step,
        logits=programs.logits,
        evaluate=Evaluator(
            programs.eval_step,
            batch_size=config.eval.batch_size,
            parallel=parallel,
            resident=val if feed.resident else None,
        ),
        description=description,
    )


def _data(config, workdir, *, shared) -> Data:
    """Validation is carved from train, test stays sealed, statistics are those of the train split in use."""
    section = config.data
    settings = [section.source.to_dict()]
    source = shared.once("source", settings, lambda: sources.load(**section.source))

    settings += [section.val_fraction, section.split_seed, section.train_examples]

    def split():
        train, val = splits.carve_validation(source, fraction=section.val_fraction, seed=section.split_seed)
        train = splits.part(train, examples=section.train_examples, seed=section.split_seed)
        return train, val, stats.fingerprint(train, val)

    train, val, fingerprint = shared.once("splits", settings, split)

    def measure():
        cache = workdir / workdir_lib.STATISTICS
        found = stats.statistics(train, section.normalize, mean=section.mean, std=section.std, cache=cache)
        return {key: values.tolist() for key, values in found.items()}

    settings = [fingerprint, section.normalize, section.mean, section.std]
    # The writer's, so that all processes normalise by the same bits, and one of them reads the sample.
    found = shared.once("statistics", settings, lambda: processes.from_writer(measure))
    statistics = {key: np.array(values, np.float64) for key, values in found.items()}
    return Data(source, train, val, fingerprint, statistics)


def _check_fits(shapes, name):
    """Raises ConfigError where parameters and optimiser are more than the memory of this machine."""
    needed, present = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)), memory_bytes()
    if present is not None and needed > present:
        raise ConfigError(
            f"config.model '{name}' and its optimizer need {needed / 1e9:,.0f} GB and this machine has "
            f"{present / 1e9:,.0f} GB; make the model smaller"
        )


def _programs(config, data, *, rules, schedule_kwargs, total_steps, parallel, shared) -> Programs:
    """Model, optimiser and the two steps, compiled; the learning rate and the decay are values in the state."""
    optimizer = {**config.optimizer.to_dict(), "rules": rules}
    for key in ("lr", "lr_per_batch"):
        del optimizer[key]
    classes, image_shape = len(data.source.class_names), data.train.images.shape[1:]

    def make():
        schedule = schedules.make_schedule(**schedule_kwargs, lr=1.0, total_steps=total_steps)
        tx = chain.make_tx(**optimizer, schedule=schedule, total_steps=total_steps)
        regularizer = regularizers.make_regularizer(**config.regularizer, rules=rules)
        normalize = stats.make_normalize(data.statistics)
        model = models.build(
            **config.model,
            num_classes=classes,
            dtype=DTYPES[config.precision],
            axis_name=AXIS,
            convolution=CONVOLUTIONS[config.convolution],
        )
        remat = REMAT[config.remat]
        model = remat.model(model)
        images = lambda count: whitening.spread(data.train.images, count=count, normalize=normalize)  # noqa: E731
        data_init = whitening.make_data_init(**config.data_init, images=images)
        init = state_lib.make_init(model, tx, image_shape=image_shape, data_init=data_init)
        _check_fits(jax.eval_shape(init, jax.random.key(0)), config.model.name)

        # Validation and test are measured by the same loss, without label smoothing.
        train_loss = losses.make_loss(**config.loss, label_smoothing=config.label_smoothing)
        plain_loss = losses.make_loss(**config.loss, label_smoothing=0.0)
        train_step = make_train_step(
            model=model,
            tx=tx,
            loss=train_loss,
            regularizer=regularizer,
            augment=augment.make_augment(config.data.augment),
            normalize=normalize,
            mix=mixing.make_mix(**config.data.mix, num_classes=classes),
            accumulation_parts=config.accumulation_parts,
            ema_decay=config.ema_decay,
            remat=remat.forward,
            trained=functools.partial(rules_lib.without_frozen_gradients, rules),
        )
        if config.guard.on_non_finite == "skip":
            train_step = nonfinite.skipping(train_step)
        train_steps = make_train_steps(train_step, steps_per_call=config.steps_per_call, window=config.log_every_steps)
        logits = make_logits(model=model, normalize=normalize, views=tta.VIEWS[config.eval.views])
        eval_step = make_eval_step(logits=logits, loss=plain_loss)
        probe_step = make_probe_step(model=model, loss=plain_loss, regularizer=regularizer, normalize=normalize)
        return Programs(
            init=init,
            logits=logits,
            train_steps=parallel.compile(train_steps, donate=True, takes=(REPLICATED, SHARDED, REPLICATED, REPLICATED)),
            train_step=parallel.compile(train_step, donate=True),
            eval_step=parallel.compile(eval_step, donate=False),
            probe_step=parallel.compile(probe_step, donate=False),
        )

    # As are trials; its rate does not depend on the length of the run, unless a rule ends before it.
    constant = config.schedule.name == "constant" and not rules_lib.any_until(rules)
    static = {key: value for key, value in optimizer.items() if key != "weight_decay"}
    parts = [config[key].to_dict() for key in ("model", "data_init", "loss", "regularizer")]
    parts += [config[key] for key in ("precision", "convolution", "remat", "accumulation_parts", "label_smoothing")]
    parts += [config[key] for key in ("ema_decay", "steps_per_call", "log_every_steps")]
    parts += [config.eval.views, config.guard.on_non_finite == "skip"]
    parts += [config.data.augment, config.data.mix.to_dict(), config.parallel.backend]
    parts += [data.fingerprint, config.data.normalize, config.data.mean, config.data.std]
    settings = [static, schedule_kwargs, None if constant else total_steps, *parts, classes, image_shape]
    try:
        return shared.once("programs", settings, make)
    except ConfigError:
        raise
    except ValueError as error:
        size = "x".join(map(str, image_shape))
        raise ConfigError(f"config.model '{config.model.name}' does not fit {size} images: {error}") from error
