"""Learning-rate schedules, in optimiser steps, and how durations become steps.

A schedule is `step -> learning rate`. Each entry of `SCHEDULES` takes its own parameters and, of `lr`
(the peak), `warmup_steps` and `decay_steps` (those after warm-up), the ones it needs; it counts from the end of
warm-up. `make_schedule` puts a linear warm-up from zero before it.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.ranges import Between, Duration, Inside, Length, Natural, Positive, PositiveDuration
from linseed.trainer.errors import ConfigError

UNITS = ("epochs", "examples", "percent", "steps")


def epochs_to_steps(epochs: float, *, num_examples: int, batch_size: int) -> int:
    """The whole number of optimiser steps that is nearest to `epochs` passes over the data."""
    return round(epochs * num_examples / batch_size)


def duration_steps(value: float, unit: str, *, num_examples: int, batch_size: int, total_steps: int | None) -> int:
    """The whole number of optimiser steps nearest to `value` epochs, examples, steps, or percent of the run.

    total_steps: the length of the run, None while it is not known. Raises ConfigError, one line, for a negative or
    endless duration, a part of a step, or percent of an unknown length.
    """
    if not 0 <= value < math.inf:
        raise ConfigError(f"a duration of {value:g} {unit} should be at least 0, and finite")
    if unit == "steps" and value != int(value):
        raise ConfigError(f"a duration of {value:g} steps should be a whole number")
    if unit == "percent" and (total_steps is None or value > 100):
        raise ConfigError(
            f"a duration of {value:g} percent should be at most 100, and not the length of the run itself"
        )
    steps = {
        "epochs": lambda: epochs_to_steps(value, num_examples=num_examples, batch_size=batch_size),
        "examples": lambda: round(value / batch_size),
        "percent": lambda: round(total_steps * value / 100),
        "steps": lambda: int(value),
    }
    return steps[unit]()


def durations_to_steps(
    name: str, section: Mapping[str, Any], *, num_examples: int, batch_size: int, total_steps: int | None
) -> dict[str, Any]:
    """`section` of the config, called `name`, with each duration in whole optimiser steps.

    A duration is a key that is a unit or ends in one: `epochs`, `warmup_percent`, `at_epochs`; it becomes
    `steps`, `warmup_steps`, `at_steps`. Its value is a number or a tuple of numbers. Other keys are
    handed on. Raises ConfigError, one line, for a duration given in two units and for what `duration_steps` refuses.
    """
    result, origin = {}, {}
    for key, value in section.items():
        unit = key.rpartition("_")[2]
        target = key.removesuffix(unit) + "steps" if unit in UNITS else key
        if target in origin:
            raise ConfigError(
                f"config.{name}.{origin[target]} and config.{name}.{key} are one duration; keep one of them"
            )
        origin[target] = key
        if unit in UNITS:
            many = isinstance(value, (tuple, list))
            span = dict(num_examples=num_examples, batch_size=batch_size, total_steps=total_steps)
            try:
                steps = tuple(duration_steps(item, unit, **span) for item in (value if many else (value,)))
            except ConfigError as error:
                raise ConfigError(f"config.{name}.{key}: {error}") from None
            value = steps if many else steps[0]
        result[target] = value
    return result


def scaled_lr(lr: float, *, batch_size: int, lr_per_batch: int) -> float:
    """`lr * batch_size / lr_per_batch`: batch x N takes rate x N (Goyal et al. 2017).

    lr_per_batch: the batch size that `lr` is meant for; 0 leaves `lr` as it is.
    """
    return lr * batch_size / lr_per_batch if lr_per_batch else lr


def _constant(*, lr):
    return optax.constant_schedule(lr)


def _step(*, lr, warmup_steps, decay_steps, at_steps: Annotated[tuple[Duration, ...], Length(1)], factor: Inside = 0.1):
    # lr * factor^(milestones passed). Milestones count from the start of the run, warm-up included.
    total = warmup_steps + decay_steps
    rising = all(a < b for a, b in zip(at_steps, at_steps[1:], strict=False))
    if not rising or at_steps[0] <= warmup_steps or at_steps[-1] >= total:
        raise ConfigError(
            f"the milestones of the schedule 'step' ({', '.join(map(str, at_steps))}) should rise, after the "
            f"warm-up ({warmup_steps} steps) and within the run ({total} steps); schedule.at_percent fits any length"
        )
    return optax.piecewise_constant_schedule(lr, {at - warmup_steps: factor for at in at_steps})


def _cosine(*, lr, decay_steps):
    # lr / 2 * (1 + cos(pi t / T)): SGDR (Loshchilov and Hutter, 2017) without restarts.
    return optax.cosine_decay_schedule(lr, decay_steps)


def _linear(*, lr, decay_steps):
    # lr * (1 - t / T)
    return optax.linear_schedule(lr, 0.0, decay_steps)


def _inverse_sqrt(*, lr, timescale_steps: PositiveDuration):
    # lr * sqrt(s / (t + s)), t from the end of warm-up, so that it starts at lr. s = 1 is the lecture's lr / sqrt(t),
    # t counted from 1; s = the length of the warm-up is that of Vaswani et al. 2017.
    _at_least_one_step("schedule.timescale", timescale_steps)
    return lambda step: lr * jnp.sqrt(timescale_steps / (jnp.maximum(step, 0) + timescale_steps))


def _one_cycle(
    *, lr, decay_steps, rise_steps: PositiveDuration, div_factor: Positive = 25.0, final_div_factor: Positive = 1e4
):
    # Half a cosine from lr / div_factor up to lr, another to lr / (div_factor * final_div_factor) at the last step:
    # Smith and Topin 2018, with the cosine of fast.ai. A warm-up before it ends at lr / div_factor, not at the peak.
    last = decay_steps - 1
    if not 0 < rise_steps < last:
        raise ConfigError(
            f"schedule.rise ({rise_steps} steps) should be at least a step and end before the last of the cycle's "
            f"{decay_steps} steps"
        )
    scales = {rise_steps: float(div_factor), last: 1 / (div_factor * final_div_factor)}
    return optax.piecewise_interpolate_schedule("cosine", lr / div_factor, scales)


def _sgdr(*, lr, decay_steps, cycle_steps: PositiveDuration, cycle_factor: Annotated[float, Between(1)] = 2.0):
    # A cosine over cycle_steps, started again and again, each cycle_factor times as long as the one before
    # (Loshchilov and Hutter 2017). The end of the run cuts the last one.
    _at_least_one_step("schedule.cycle", cycle_steps)
    starts, length = [0], float(cycle_steps)
    while starts[-1] < decay_steps:
        starts.append(starts[-1] + max(1, round(length)))
        length *= cycle_factor
    starts, lengths = np.array(starts[:-1]), np.diff(starts)

    def schedule(step):
        cycle = jnp.searchsorted(starts, step, side="right") - 1
        t = (step - jnp.asarray(starts)[cycle]) / jnp.asarray(lengths)[cycle]
        return lr / 2 * (1 + jnp.cos(jnp.pi * t))

    return schedule


class PlateauState(NamedTuple):
    """count: updates made so far, int32. plateau: Optax's state: scale, best value, windows without a better one."""

    count: jax.Array
    plateau: optax.contrib.ReduceLROnPlateauState


class Plateau(optax.schedules.StatefulSchedule):
    """`lr`, times `factor` whenever the loss, averaged over windows, got no better in more than `patience` windows.

    Better is below (1 - rtol) times the best window so far. Patience counts as in PyTorch's ReduceLROnPlateau; Optax's,
    and that of Keras, is one more for the same rates. The loss is the `value` that the step hands to
    `tx.update`: the training loss of the step, whose rate it does not yet change. Watching starts after the warm-up.
    Its rate depends on more than the step, so that it is no function of it: Optax's stateful schedule, which
    `inject_hyperparams` drives; the state is part of the optimiser's and is checkpointed with it.
    """

    def __init__(
        self,
        *,
        lr,
        warmup_steps,
        window_steps: PositiveDuration,
        factor: Inside = 0.1,
        patience: Natural = 10,
        rtol: Positive = 1e-4,
    ):
        _at_least_one_step("schedule.window", window_steps)
        self._lr, self._warmup_steps = lr, warmup_steps
        self._link = optax.contrib.reduce_on_plateau(factor, patience + 1, rtol, accumulation_size=window_steps)

    def init(self) -> PlateauState:
        return PlateauState(jnp.zeros([], jnp.int32), self._link.init(jnp.zeros([], jnp.float32)))

    def update(self, state: PlateauState, *, value: jax.Array, **extra_args) -> PlateauState:
        _, plateau = self._link.update((), state.plateau, value=value)
        watching = state.count >= self._warmup_steps
        plateau = jax.tree.map(lambda new, old: jnp.where(watching, new, old), plateau, state.plateau)
        return PlateauState(optax.safe_increment(state.count), plateau)

    def __call__(self, state: PlateauState, **extra_args) -> jax.Array:
        warmth = jnp.minimum(1.0, state.count / self._warmup_steps) if self._warmup_steps else 1.0
        return self._lr * warmth * state.plateau.scale


SCHEDULES = {
    "constant": _constant,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "linear": _linear,
    "one_cycle": _one_cycle,
    "plateau": Plateau,
    "sgdr": _sgdr,
    "step": _step,
}

# The durations above that a config may leave out, in a unit that suits a run of any length.
DEFAULT_DURATIONS = {
    "inverse_sqrt": {"timescale_percent": 5},
    "one_cycle": {"rise_percent": 30},
    "plateau": {"window_epochs": 1},
    "sgdr": {"cycle_percent": 15},  # with cycle_factor 2 three cycles, of which the end of the run cuts a little
    "step": {"at_percent": (50, 75)},
}


def _at_least_one_step(key, steps):
    if steps < 1:
        raise ConfigError(f"{key} should be at least a step long")


def make_schedule(
    name: str, *, lr: float, warmup_steps: int, total_steps: int, **kwargs
) -> optax.Schedule | optax.schedules.StatefulSchedule:
    """Linear warm-up from 0 over `warmup_steps` to the first value of `SCHEDULES[name]`, then that until `total_steps`.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", for the warm-up. With `warmup_steps > 0` the first step has
    rate 0; without, the first value of the schedule, which is `lr` for all but `one_cycle`. `plateau` alone
    is stateful (`Plateau`). Raises ConfigError for a warm-up as long as the run.
    """
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"the warm-up ({warmup_steps} steps) is as long as the run ({total_steps} steps); "
            "lower schedule.warmup_epochs or raise horizon.epochs"
        )
    span = dict(lr=lr, warmup_steps=warmup_steps, decay_steps=total_steps - warmup_steps)
    wanted = inspect.signature(SCHEDULES[name]).parameters
    decay = SCHEDULES[name](**{key: value for key, value in span.items() if key in wanted}, **kwargs)
    if warmup_steps == 0 or isinstance(decay, Plateau):
        return decay
    rise = optax.linear_schedule(0.0, float(decay(0)), warmup_steps)
    return optax.join_schedules([rise, decay], [warmup_steps])
