"""Trials and numbers as the page of a study shows them.

JSON holds inf and NaN as null or as a word, and a trial that is under way lacks some keys. `read_trial` turns missing
values into NaN, and all that shows a trial accepts NaN.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Rung(NamedTuple):
    """The metrics of a trial after `steps` optimiser steps; NaN if not measured."""

    steps: float
    epochs: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    score: float  # what config.eval.monitor names, the higher the better


class Trial(NamedTuple):
    """A trial, for display. state: complete, dropped, failed or running; reason: why, in words."""

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
    further: tuple[tuple[str, str], ...] = ()  # further keys of the config that the study searches, with their values

    @property
    def last(self) -> Rung:
        """The last rung; all NaN if there is none yet."""
        return self.rungs[-1] if self.rungs else Rung(*[math.nan] * len(Rung._fields))

    @property
    def diverged(self) -> bool:
        return self.state == "failed" or bool(self.rungs) and not math.isfinite(self.last.train_loss)


def number(value: Any) -> float:
    """`value` as a float, NaN if it is no number; inf or 0 if it overflows or underflows float32, as in training."""
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
    further = tuple((str(key), fact(value)) for key, value in (values.get("further") or {}).items())
    return Trial(**words, **figures, reason=values.get("reason") or "", rungs=rungs, further=further)


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Best first: complete trials, then dropped, running and failed ones, each by their score on validation."""
    order = {"complete": 0, "dropped": 1, "running": 2}
    return sorted(
        trials,
        key=lambda trial: (order.get(trial.state, 3), -np.nan_to_num(_score(trial.last), nan=-np.inf)),
    )


def _score(rung):
    return rung.val_accuracy if math.isnan(rung.score) else rung.score  # an earlier version's have the accuracy alone


def _finite_or(write):
    """`write` for any value: inf is written as a word, NaN and missing values as a dash."""

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
    """The text for a number or a word of a step."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None or value == "" else str(value)
