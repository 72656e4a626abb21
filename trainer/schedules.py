"""Learning-rate schedules, in optimiser steps.

A schedule is `step -> learning rate`. Each entry of `SCHEDULES` takes the peak
rate and the number of steps after warm-up; `make_schedule` puts a linear
warm-up from zero before it.
"""

import optax

from trainer.errors import ConfigError, unknown_name


def epochs_to_steps(epochs: float, *, num_examples: int, batch_size: int) -> int:
    """The whole number of optimiser steps that is nearest to `epochs` passes over the data."""
    return round(epochs * num_examples / batch_size)


def _constant(*, lr, decay_steps):
    del decay_steps
    return optax.constant_schedule(lr)


def _cosine(*, lr, decay_steps):
    # lr / 2 * (1 + cos(pi t / T)): SGDR (Loshchilov and Hutter, 2017) without restarts.
    return optax.cosine_decay_schedule(lr, decay_steps)


SCHEDULES = {"constant": _constant, "cosine": _cosine}


def make_schedule(name: str, *, lr: float, warmup_steps: int, total_steps: int, **kwargs) -> optax.Schedule:
    """Linear warm-up from 0 to `lr` over `warmup_steps`, then `SCHEDULES[name]` until `total_steps`.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", for the warm-up. With
    `warmup_steps > 0` the first step has rate 0; without, the first has the peak.
    Raises ConfigError for an unknown name or a warm-up as long as the run.
    """
    if name not in SCHEDULES:
        raise ConfigError(unknown_name("schedule", name, SCHEDULES))
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"the warm-up ({warmup_steps} steps) is as long as the run ({total_steps} steps); "
            "lower schedule.warmup_epochs or raise horizon.epochs"
        )
    decay = SCHEDULES[name](lr=lr, decay_steps=total_steps - warmup_steps, **kwargs)
    if warmup_steps == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), decay], [warmup_steps])
