"""The durations of a run in whole optimiser steps, and the rate that its batch calls for: worked out once, here."""

import functools
from typing import Any, NamedTuple

import ml_collections

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.optim import schedules


class Plan(NamedTuple):
    """What a config's durations come to for a number of train images.

    batch_size: examples a step, of all devices. schedule: the section with its durations in steps, as
    `schedules.make_schedule` takes it. rules: the optimiser's rules, their durations in steps. lr: the peak rate for
    this batch size.
    """

    batch_size: int
    total_steps: int
    eval_every_steps: int
    schedule: dict[str, Any]
    rules: tuple[str, ...]
    lr: float


def make_plan(config: ml_collections.ConfigDict, *, num_examples: int) -> Plan:
    """The plan of a complete config. Raises ConfigError, one line, for durations that cannot be."""
    batch_size = config.data.batch_size or num_examples
    to_steps = functools.partial(schedules.durations_to_steps, num_examples=num_examples, batch_size=batch_size)
    total_steps = max(1, to_steps("horizon", config.horizon, total_steps=None)["steps"])
    if total_steps >= 2**31:
        raise ConfigError(f"config.horizon is {total_steps:,} steps; at most {2**31 - 1:,} can be counted; lower it")
    to_steps = functools.partial(to_steps, total_steps=total_steps)
    optimizer = config.optimizer
    return Plan(
        batch_size=batch_size,
        total_steps=total_steps,
        eval_every_steps=max(1, to_steps("eval", config.eval)["every_steps"]),
        schedule=to_steps("schedule", config.schedule),
        rules=rules_lib.with_layer_decay(rules_lib.in_steps(optimizer.rules, to_steps=to_steps), optimizer.layer_decay),
        lr=schedules.scaled_lr(optimizer.lr, batch_size=batch_size, lr_per_batch=optimizer.lr_per_batch),
    )
