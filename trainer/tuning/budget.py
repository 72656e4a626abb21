"""The budget of a study: in time, or in train steps, which are the same on every machine."""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from linseed.trainer.errors import ConfigError
from linseed.trainer.tuning.search import Phase
from linseed.trainer.tuning.study import Study

LEAST_STEPS = 10  # of a trial: fewer tell nothing

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Budget(NamedTuple):
    """The limit of a study. seconds: wall time, or None. steps: train steps, or None. Both None: no limit."""

    seconds: float | None
    steps: int | None
    text: str


UNLIMITED = Budget(None, None, "")


def parse(text: str) -> Budget:
    """Parses `"90s"`, `"30m"`, `"1.5h"` or `"4000steps"`. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|steps)", text.strip())
    if not found or float(found[1]) < (1 if found[2] == "steps" else 1e-9):
        raise ConfigError(f"--budget={text} should be a time such as 90s, 30m or 2h, or train steps such as 4000steps")
    amount, unit = float(found[1]), found[2]
    if unit == "steps":
        return Budget(None, int(amount), text)
    return Budget(amount * _SECONDS[unit], None, text)


class Ledger:
    """Counts the train steps that a study has used and has left.

    A budget of time becomes steps by the speed of the trials so far, each time that a length is needed. The length is
    stored: later runs of the command, and all workers, use the same one.
    """

    def __init__(self, study: Study, phases: Sequence[Phase], *, budget: Budget):
        self.budget = budget
        self._study, self._phases = study, phases

    def used_steps(self) -> int:
        """Steps that all trials have trained; a continued trial counts once."""
        longest = {}
        for trial in self._trials():
            longest[trial.workdir] = max(longest.get(trial.workdir, 0), trial.last.steps)
        return sum(longest.values())

    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        if self.budget.seconds is not None:
            return self._study.record["seconds_used"] >= self.budget.seconds
        return self.budget.steps is not None and self.used_steps() >= self.budget.steps

    def left(self, *, runs: float, compiled: float = 0.0, evaluations_per_step: float = 0.0) -> float:
        """Steps left after the time of `runs` trial starts, each with an evaluation, and of periodic evaluations.

        compiled: so many of the starts compile a program of their own.
        """
        if self.budget.steps is not None:
            return self.budget.steps - self.used_steps()
        if self.budget.seconds is None:
            return math.inf
        if self._speed() is None:
            raise ConfigError("a --budget of time needs the speed of a trial; run the step 'overfit' or 'lr' first")
        start, longest, step = self._speed()
        seconds = self.budget.seconds - self._study.record["seconds_used"]
        return (seconds - (runs - compiled) * start - compiled * longest) / (step + evaluations_per_step * start)

    def _speed(self):
        """Median and most seconds of a trial's start, median of a train step; None before a trial was timed."""
        sound = [trial.last for trial in self._trials() if trial.rungs and not math.isnan(trial.last.step_seconds)]
        if not sound:
            return None
        step = statistics.median(outcome.step_seconds for outcome in sound)
        starts = [max(0.0, outcome.seconds - outcome.steps * outcome.step_seconds) for outcome in sound]
        return statistics.median(starts), max(starts), step

    def refuse_without_time(self, *, starts: int, steps: int):
        """Raises ConfigError if the time left has no room for `starts` of trials and `steps`, as fast as so far."""
        if (speed := self._speed()) is None:
            return
        start, _, step = speed
        least = self._study.record["seconds_used"] + starts * start + steps * step
        if least > self.budget.seconds:
            raise ConfigError(
                f"--budget={self.budget.text} has no room for every step of a study: a train step takes "
                f"{1000 * step:.0f} ms here, and {steps:,} are to come; the least that would do is about "
                f"--budget={math.ceil(least)}s; all results are kept"
            )

    def allot(self, phase: Phase, name: str, compute: Callable[[], float]) -> int:
        """The integer number of steps for `name`: `compute()` the first time; 0 if that is below LEAST_STEPS.

        A stored 0 is computed again under another budget.
        """

        def give():
            steps = compute()
            return {"steps": int(steps) if steps >= LEAST_STEPS else 0, "budget": self.budget.text}

        def is_stale(given):
            return given["steps"] == 0 and given["budget"] != self.budget.text

        return phase.plan(f"steps of {name}", give, is_stale=is_stale)["steps"]

    def refuse(self, name: str):
        """Raises ConfigError: the budget has no room for `name`."""
        raise ConfigError(
            f"--budget={self.budget.text} has no room for the step '{name}' with {LEAST_STEPS} train steps a trial: "
            f"{self._study.record['seconds_used']:.0f} s and {self.used_steps()} steps are used; raise --budget and "
            "run the same command again, all results are kept"
        )

    def _trials(self):
        return [trial for phase in self._phases for trial in phase.trials()]
