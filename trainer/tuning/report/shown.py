"""Trials and figures as the page of a study shows them.

What JSON has no number for, inf and NaN, comes as null or as a word, and a trial that is under way lacks some keys:
`read_trial` makes NaN of what is not there, and whatever shows a trial takes NaN.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Rung(NamedTuple):
    """What a trial had reached after `steps` optimiser steps; NaN where it was not measured."""

    steps: float
    epochs: float
    train_loss: float
    val_loss: float
    val_accuracy: float


class Trial(NamedTuple):
    """A trial as it is shown. state: complete, dropped, failed or running; reason: why, in words."""

    id: str
    phase: str
    lr: float
    weight_decay: float
    seed: str
    schedule: str
    state: str
    reason: str
    rungs: tuple[Rung, ...]
    seconds: float

    @property
    def last(self) -> Rung:
        """The last rung; all NaN where there is none yet."""
        return self.rungs[-1] if self.rungs else Rung(*[math.nan] * len(Rung._fields))

    @property
    def diverged(self) -> bool:
        return self.state == "failed" or bool(self.rungs) and not math.isfinite(self.last.train_loss)


def number(value: Any) -> float:
    """`value` as a float; NaN where it is none, infinite or zero where it is so in float32, in which training runs."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    if abs(value) > _LARGEST:
        return math.copysign(math.inf, value)
    return 0.0 if abs(value) < _SMALLEST else value


def read_trial(values: dict) -> Trial:
    """A trial of `study.json`."""
    rungs = tuple(Rung(*(number(rung.get(field)) for field in Rung._fields)) for rung in values.get("rungs") or ())
    words = {key: str(values.get(key, "")) for key in ("id", "phase", "seed", "schedule", "state")}
    figures = {key: number(values.get(key)) for key in ("lr", "weight_decay", "seconds")}
    return Trial(**words, **figures, reason=values.get("reason") or "", rungs=rungs)


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Best first: those that went the whole way, by validation accuracy, then those dropped, then the others."""
    order = {"complete": 0, "dropped": 1, "running": 2}
    return sorted(
        trials,
        key=lambda trial: (order.get(trial.state, 3), -np.nan_to_num(trial.last.val_accuracy, nan=-1.0)),
    )


def _finite_or(write):
    """`write`, for what may be no number: inf is said, NaN and what is not there are a dash."""

    def written(value: Any) -> str:
        value = number(value)
        return write(value) if math.isfinite(value) else "–" if math.isnan(value) else str(value)

    return written


short = _finite_or(lambda value: f"{value:g}")
percent = _finite_or(lambda value: f"{100 * value:.2f} %")
loss = _finite_or(lambda value: f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}")
count = _finite_or(lambda value: f"{value:,.0f}")
seconds = _finite_or(lambda value: f"{value:,.1f}")


def fact(value: Any) -> str:
    """A figure of a step, which may be any word."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
