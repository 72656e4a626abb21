"""A config made real: its data read, its durations in steps, its programs compiled, its state created.

    data and splits -> statistics -> plan -> programs -> state

`trainer.plan` has the durations and `trainer.programs` what is compiled.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from linseed.trainer import programs as programs_lib
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import duplicates, placement, sources, splits, stats
from linseed.trainer.data.dataset import Source
from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import chain, schedules
from linseed.trainer.plan import make_plan
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.runtime import processes, xla_flags
from linseed.trainer.runtime.data_parallel import DataParallel
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.evaluator import Evaluator
from linseed.trainer.weights import start


class Experiment(NamedTuple):
    """A config made real: data, state and compiled steps. Built by `build`."""

    train: splits.Split
    val: splits.Split
    fingerprint: str  # of train and val
    leaked: float  # the share of val that is also in train
    judged_by: str  # the settings of evaluations, see `programs.judged_by`
    num_classes: int
    class_names: tuple[str, ...]
    statistics: dict[str, np.ndarray]  # by which images are normalised, see `stats.make_normalize`
    model: Any  # the network, a `Classifier`
    test: splits.SealedTest
    feed: placement.Feed  # of train batches
    batch_size: int  # examples a step
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    schedule: Callable  # step -> learning rate; a `schedules.Plateau` where it follows the loss
    parallel: DataParallel
    hyperparams: dict[str, float]  # what `optim.with_hyperparams` takes
    state: state_lib.TrainState  # of a new run with random weights, host arrays: the shape of all its states
    begin: Callable  # (say) -> the state before the first step; say: shows the user a line
    train_steps: Callable  # (carry, batches, resident, count) -> (carry, step): what the loop calls
    train_step: Callable  # (state, batch) -> (state, metrics)
    probe_step: Callable  # (state, batch) -> measurements of the first step
    saliency: Callable  # (weights, images, classes) -> maps, of this process alone
    logits: Callable  # (weights, images) -> logits, per device, not compiled
    evaluate: Evaluator  # (weights, split) -> scores
    monitor: str  # the score that chooses the best checkpoint, one of scores.MONITORS
    description: str


class Data(NamedTuple):
    """What a config's data section comes to."""

    source: Source
    train: splits.Split
    val: splits.Split
    fingerprint: str  # of train and val
    leaked: float  # the share of val that is also in train
    statistics: dict[str, np.ndarray]


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


def build(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> Experiment:
    """Everything between a config and the first step."""
    config = resolve(config)
    deterministic = config.deterministic and xla_flags.use_deterministic_ops()
    parallel = DataParallel(config.parallel.backend, devices=jax.devices())
    _check_batches_divide(config, parallel)
    data = load_data(config, workdir, shared=shared)
    plan = make_plan(config, num_examples=len(data.train.labels))
    feed = placement.make_feed(
        data.train,
        val=data.val,
        placement=config.data.placement,
        seed=config.seed,
        batch_size=config.data.batch_size,
        multiple=parallel.num_devices * config.accumulation_parts,
        shard_index=parallel.shard_index,
        shard_count=parallel.shard_count,
    )
    programs = _programs(config, plan, data, parallel=parallel, shared=shared)
    hyperparams = {"lr": plan.lr, "weight_decay": config.optimizer.get("weight_decay", 0.0)}  # lbfgs has none
    state = state_lib.create(programs.init, seed=config.seed, ema=config.ema_decay > 0)
    state = state.replace(opt_state=chain.with_hyperparams(state.opt_state, **hyperparams))

    def begin(say):
        started = start.begin(
            config,
            state,
            model=programs.model,
            opt_init=programs.opt_init,
            features=programs.features,
            train=data.train,
            val=data.val,
            statistics=data.statistics,
            card=workdir / workdir_lib.PRETRAINED,
            shared=shared,
            say=say,
        )
        return started.replace(opt_state=chain.with_hyperparams(started.opt_state, **hyperparams))

    return Experiment(
        train=data.train,
        val=data.val,
        fingerprint=data.fingerprint,
        leaked=data.leaked,
        judged_by=programs_lib.judged_by(config),
        num_classes=len(data.source.class_names),
        class_names=data.source.class_names,
        statistics=data.statistics,
        model=programs.model,
        test=splits.SealedTest(
            data.source.open_test, record=workdir / workdir_lib.OPENINGS, fingerprint=data.source.test_fingerprint
        ),
        feed=feed,
        batch_size=plan.batch_size,
        total_steps=plan.total_steps,
        warmup_steps=plan.schedule["warmup_steps"],
        eval_every_steps=plan.eval_every_steps,
        schedule=schedules.make_schedule(**plan.schedule, lr=plan.lr, total_steps=plan.total_steps),
        parallel=parallel,
        hyperparams=hyperparams,
        state=state,
        begin=begin,
        train_steps=programs.train_steps,
        train_step=programs.train_step,
        probe_step=programs.probe_step,
        saliency=programs.saliency,
        logits=programs.logits,
        evaluate=Evaluator(
            programs.eval_step,
            batch_size=config.eval.batch_size,
            parallel=parallel,
            resident=data.val if feed.resident else None,
        ),
        monitor=config.eval.monitor,
        description="\n".join(
            _describe(config, plan, data, parallel=parallel, params=state.params, deterministic=deterministic)
        ),
    )


def check_fits(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared):
    """Raises ConfigError where the network of a config does not fit its images. Nothing is compiled."""
    config = resolve(config)
    data = load_data(config, workdir, shared=shared)
    parallel = DataParallel(config.parallel.backend, devices=jax.devices())
    _programs(config, make_plan(config, num_examples=len(data.train.labels)), data, parallel=parallel, shared=shared)


def load_data(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> Data:
    """Validation is carved from train, test stays sealed, statistics are those of the train split in use."""
    section = config.data
    source_settings = [section.source.to_dict()]
    settings = [*source_settings, section.val_fraction, section.split_seed, section.train_examples]

    def read():
        source = shared.once("source", source_settings, lambda: sources.load(**section.source))
        return source, *shared.once("splits", settings, lambda: split(source))

    def split(source):
        train, val = splits.carve_validation(source, fraction=section.val_fraction, seed=section.split_seed)
        train = splits.part(train, examples=section.train_examples, seed=section.split_seed)
        return train, val, stats.fingerprint(train, val), duplicates.share_in_train(train, val)

    source, train, val, fingerprint, leaked = processes.agreed(read, facts=_facts)

    def measure():
        cache = workdir / workdir_lib.STATISTICS
        found = stats.statistics(train, section.normalize, mean=section.mean, std=section.std, cache=cache)
        return {key: values.tolist() for key, values in found.items()}

    settings = [fingerprint, section.normalize, section.mean, section.std]
    # The writer's, so that all processes normalise by the same bits, and one of them reads the sample.
    found = shared.once("statistics", settings, lambda: processes.from_writer(measure))
    statistics = {key: np.array(values, np.float64) for key, values in found.items()}
    return Data(source, train, val, fingerprint, leaked, statistics)


def load_left_out(config: ml_collections.ConfigDict, *, most: int, shared: Shared) -> splits.Split | None:
    """At most `most` of the train images that config.data.train_examples leaves out; None if it leaves out none."""
    section = config.data
    if not section.train_examples:
        return None
    source = shared.once("source", [section.source.to_dict()], lambda: sources.load(**section.source))
    train, _ = splits.carve_validation(source, fraction=section.val_fraction, seed=section.split_seed)
    found = splits.left_out(train, examples=section.train_examples, seed=section.split_seed, most=most)
    return found if len(found.labels) else None


def _facts(read):
    """What all processes must have read alike."""
    source, train, val, *_ = read
    parts = {"train": train, "val": val}
    return {
        "list of classes": source.class_names,
        **{f"number of {name} images": len(part.labels) for name, part in parts.items()},
        **{f"{name} split (names or pixels, labels)": stats.fingerprint(part) for name, part in parts.items()},
        "test split (names, sizes, labels)": source.test_fingerprint,
    }


def _check_batches_divide(config, parallel):
    if config.data.batch_size:
        parallel.check_divides(config.data.batch_size, key="config.data.batch_size", parts=config.accumulation_parts)
    parallel.check_divides(config.eval.batch_size, key="config.eval.batch_size", parts=1)


def _programs(config, plan, data, *, parallel, shared):
    """The programs of a config, those of an earlier run of this process where nothing that matters differs."""
    classes, images = len(data.source.class_names), data.train.images
    key = programs_lib.key(config, plan, fingerprint=data.fingerprint, classes=classes, image_shape=images.shape[1:])
    try:
        return shared.once(
            "programs",
            key,
            lambda: programs_lib.compile_programs(
                config, plan, images=images, classes=classes, statistics=data.statistics, parallel=parallel
            ),
        )
    except ConfigError:
        raise
    except ValueError as error:
        size = "x".join(map(str, images.shape[1:]))
        raise ConfigError(f"config.model '{config.model.name}' does not fit {size} images: {error}") from error


def _describe(config, plan, data, *, parallel, params, deterministic):
    """What will run, a line each."""
    yield from (f"skipped {line}" for line in data.source.skipped)
    yield from data.source.notes
    size = "x".join(map(str, data.train.images.shape[1:]))
    largest = np.bincount(data.train.labels).max() / len(data.train.labels)
    val_from = "carved from train" if data.source.val is None else "of its own: config.data.val_fraction has no part"
    yield (
        f"{config.data.source.name}: {len(data.train.labels):,} train, {len(data.val.labels):,} val ({val_from}), "
        f"test sealed; {len(data.source.class_names)} classes of {size} images, the largest {largest:.2%} of train"
    )
    if plan.batch_size > len(data.train.labels):
        yield (
            f"config.data.batch_size={plan.batch_size} is more than the {len(data.train.labels):,} train images: a "
            f"step is {plan.batch_size / len(data.train.labels):.3g} epochs; lower it, or set it to 0 for all of train"
        )
    if data.leaked:
        yield f"{data.leaked:.1%} of the val images are also in train, pixel for pixel: val measures memory there"
    yield f"{config.model.name}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters" + (
        f"; augmented by {config.data.augment}" if config.data.augment else ""
    )
    epochs = plan.total_steps * plan.batch_size / len(data.train.labels)
    yield (
        f"{config.optimizer.name}, {config.schedule.name} over {plan.total_steps:,} steps of {plan.batch_size} images "
        f"({epochs:.3g} epochs), {plan.schedule['warmup_steps']:,} of them warm-up"
    )
    yield f"{parallel.num_devices} x {jax.devices()[0].device_kind}, {config.parallel.backend}, {config.precision}" + (
        f", {parallel.shard_count} processes" if parallel.shard_count > 1 else ""
    )
    if config.deterministic and not deterministic and jax.default_backend() == "gpu":
        yield (
            f"JAX started without {xla_flags.DETERMINISTIC}: a resumed run will not be the same bit for bit; add the "
            "flag to XLA_FLAGS before the first use of JAX, or set config.deterministic=False"
        )
    if plan.lr != config.optimizer.lr:
        yield (
            f"lr {config.optimizer.lr:g} for a batch of {config.optimizer.lr_per_batch} is {plan.lr:g} for one of "
            f"{plan.batch_size}"
        )
