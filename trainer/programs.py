"""What is compiled for a config: model, optimiser and loss put together into the steps that the devices run.

The peak rate and the weight decay are values in the optimiser's state: runs that differ in them share programs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from linseed.models import MODELS
from linseed.models.layers import Compute
from linseed.trainer.config import canonical
from linseed.trainer.config.canonical import flatten
from linseed.trainer.config.sections import in_steps
from linseed.trainer.data import augment, stats
from linseed.trainer.data.augment import mixing
from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import chain, regularizers, schedules
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.plan import Plan
from linseed.trainer.runtime.data_parallel import AXIS, REPLICATED, SHARDED, DataParallel
from linseed.trainer.runtime.machine import memory_bytes
from linseed.trainer.runtime.onednn import CONVOLUTIONS
from linseed.trainer.step import losses, nonfinite, tta
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.data_init import make_data_init, spread
from linseed.trainer.step.eval_step import make_eval_step, make_logits
from linseed.trainer.step.multi_step import make_train_steps
from linseed.trainer.step.probe_step import make_probe_step
from linseed.trainer.step.remat import REMAT
from linseed.trainer.step.saliency import make_saliency
from linseed.trainer.step.train_step import make_train_step
from linseed.trainer.weights.features import make_features

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

# Keys, and sections, that make no difference to a program; all others are part of what programs are shared by. Data,
# schedule, horizon and rules are in it in another form: the fingerprint of the data, and the plan in steps.
NOT_IN_PROGRAMS = (
    "checkpoint",
    "data.batch_size",
    "data.placement",
    "data.source",
    "data.split_seed",
    "data.train_examples",
    "data.val_fraction",
    "deterministic",
    "early_stopping",
    "eval.batch_size",
    "eval.every_steps",
    "eval.monitor",
    "guard.lr_factor",
    "guard.max_times",
    "guard.watchdog_minutes",
    "head_init",
    "horizon",
    "optimizer.lr",
    "optimizer.lr_per_batch",
    "optimizer.weight_decay",
    "plugins",
    "pretrained",
    "schedule",
    "seed",
)


class Programs(NamedTuple):
    """The functions of a config, compiled where nothing else is said."""

    init: Callable  # root key -> (params, model_state, opt_state)
    opt_init: Callable  # params -> opt_state
    model: Any  # the network
    features: Callable  # of `make_features`; to be compiled as a part of something
    logits: Callable  # of `make_logits`; to be compiled as a part of something
    train_steps: Callable  # (carry, batches, resident, count) -> (carry, step): what the loop calls
    train_step: Callable  # (state, batch) -> (state, metrics)
    eval_step: Callable  # (weights, batch) -> (sums, examples)
    probe_step: Callable  # (state, batch) -> measurements of the first step
    saliency: Callable  # (weights, images, classes) -> maps: what the report calls


def key(config: ml_collections.ConfigDict, plan: Plan, *, fingerprint: str, classes: int, image_shape) -> list[Any]:
    """What programs depend on, as JSON: two configs with the same key share their programs."""
    # At a constant rate the length of the run makes no difference, unless a rule ends before it.
    endless = config.schedule.name == "constant" and not rules_lib.any_until(plan.rules)
    kept = {name: value for name, value in flatten(config) if matters(name)}
    return [kept, plan.rules, plan.schedule, None if endless else plan.total_steps, fingerprint, classes, image_shape]


def matters(name: str) -> bool:
    """Whether the key `name` of a config is part of what programs are shared by."""
    name = in_steps(name)
    return not any(name == other or name.startswith(f"{other}.") for other in NOT_IN_PROGRAMS)


def judged_by(config: ml_collections.ConfigDict) -> str:
    """A hash, hexadecimal, of the keys that an evaluation can depend on: those of programs and of `eval`."""
    kept = {name: value for name, value in flatten(config) if matters(name) or name.startswith("eval.")}
    return canonical.sha256(canonical.nested(kept))


def compile_programs(
    config: ml_collections.ConfigDict, plan: Plan, *, images, classes: int, statistics, parallel: DataParallel
) -> Programs:
    """The programs of a complete config.

    images: the train images, uint8 [N, H, W, C]. statistics: see `stats.make_normalize`. Raises ConfigError where parts
    do not fit each other or the images.
    """
    optimizer = {**config.optimizer.to_dict(), "rules": plan.rules}
    for name in ("lr", "lr_per_batch", "layer_decay"):
        del optimizer[name]
    schedule = schedules.make_schedule(**plan.schedule, lr=1.0, total_steps=plan.total_steps)
    tx = chain.make_tx(**optimizer, schedule=schedule, total_steps=plan.total_steps)
    regularizer = regularizers.make_regularizer(**config.regularizer, rules=plan.rules)
    normalize = stats.make_normalize(statistics)
    remat = REMAT[config.remat]
    model = remat.model(make_model(config, classes=classes))
    some_images = functools.partial(_some_images, images, normalize=normalize)
    data_init = make_data_init(**config.data_init, images=some_images)
    init = state_lib.make_init(model, tx, image_shape=images.shape[1:], data_init=data_init)
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
        trained=functools.partial(rules_lib.without_frozen_gradients, plan.rules),
    )
    if config.guard.on_non_finite == "skip":
        train_step = nonfinite.skipping(train_step)
    train_steps = make_train_steps(train_step, steps_per_call=config.steps_per_call, window=config.log_every_steps)
    logits = make_logits(model=model, normalize=normalize, views=tta.VIEWS[config.eval.views])
    eval_step = make_eval_step(logits=logits, loss=plain_loss)
    probe_step = make_probe_step(model=model, loss=plain_loss, regularizer=regularizer, normalize=normalize)
    return Programs(
        init=init,
        opt_init=jax.jit(tx.init),
        model=model,
        features=make_features(model=model, normalize=normalize),
        logits=logits,
        train_steps=parallel.compile(train_steps, donate=True, takes=(REPLICATED, SHARDED, REPLICATED, REPLICATED)),
        train_step=parallel.compile(train_step, donate=True),
        eval_step=parallel.compile(eval_step, donate=False),
        probe_step=parallel.compile(probe_step, donate=False),
        saliency=make_saliency(model=model, normalize=normalize),
    )


def make_model(config: ml_collections.ConfigDict, *, classes: int):
    """The network of `config.model` for so many classes."""
    parameters = config.model.to_dict()
    compute = Compute(
        DTYPES[config.precision],
        axis_name=AXIS,
        convolution=CONVOLUTIONS[config.convolution],
        running_variance=config.batch_norm.running_variance,
        frozen_statistics=config.batch_norm.frozen,
    )
    return MODELS[parameters.pop("name")](num_classes=classes, compute=compute, **parameters)


def _some_images(images, count, *, normalize):
    return spread(images, count=count, normalize=normalize)


def _check_fits(shapes, name):
    """Raises ConfigError where parameters and optimiser are more than the memory of this machine."""
    needed, present = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)), memory_bytes()
    if present is not None and needed > present:
        raise ConfigError(
            f"config.model '{name}' and its optimizer need {needed / 1e9:,.0f} GB and this machine has "
            f"{present / 1e9:,.0f} GB; make the model smaller"
        )
