"""What a study may cost: in time, or in steps, which every machine counts alike."""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from linseed.trainer.errors import ConfigError
from linseed.trainer.tuning.search import Phase
from linseed.trainer.tuning.study import Study

LEAST_STEPS = 10  # of a trial: fewer say nothing

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Budget(NamedTuple):
    """seconds: of wall time, or None; steps: train steps, or None. Both None: no limit."""

    seconds: float | None
    steps: int | None
    text: str


UNLIMITED = Budget(None, None, "")


def parse(text: str) -> Budget:
    """`"90s"`, `"30m"`, `"1.5h"` or `"4000steps"`. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|steps)", text.strip())
    if not found or float(found[1]) < (1 if found[2] == "steps" else 1e-9):
        raise ConfigError(f"--budget={text} should be a time such as 90s, 30m or 2h, or a number of steps: 4000steps")
    amount, unit = float(found[1]), found[2]
    if unit == "steps":
        return Budget(None, int(amount), text)
    return Budget(amount * _SECONDS[unit], None, text)


class Ledger:
    """What a study has used and has left, counted in train steps.

    A budget of time is turned into steps by the speed of the trials so far, when a length is needed; what was given is
    written into the storage, so that it is the same when the command is run again, and for all workers.
    """

    def __init__(self, study: Study, phases: Sequence[Phase], *, budget: Budget):
        self.budget = budget
        self._study, self._phases = study, phases

    def used_steps(self) -> int:
        """Steps that the trials of this study have trained, a continued one once."""
        longest = {}
        for trial in self._trials():
            longest[trial.workdir] = max(longest.get(trial.workdir, 0), trial.last.steps)
        return sum(longest.values())

    def is_spent(self) -> bool:
        """Whether nothing is left."""
        if self.budget.seconds is not None:
            return self._study.record["seconds_used"] >= self.budget.seconds
        return self.budget.steps is not None and self.used_steps() >= self.budget.steps

    def left(self, *, runs: float, evaluations_per_step: float = 0.0) -> float:
        """Steps that are left beside `runs` starts of a trial, each with its evaluation, and evaluations on the way."""
        if self.budget.steps is not None:
            return self.budget.steps - self.used_steps()
        if self.budget.seconds is None:
            return math.inf
        sound = [trial.last for trial in self._trials() if trial.rungs and not math.isnan(trial.last.step_seconds)]
        if not sound:
            raise ConfigError("a budget of time needs the speed of a trial; run the steps 'overfit' or 'lr' first")
        step = statistics.median(outcome.step_seconds for outcome in sound)
        start = max(0.0, statistics.median(outcome.seconds - outcome.steps * outcome.step_seconds for outcome in sound))
        seconds = self.budget.seconds - self._study.record["seconds_used"]
        return (seconds - runs * start) / (step + evaluations_per_step * start)

    def allot(self, phase: Phase, name: str, compute: Callable[[], float]) -> int:
        """The whole number of steps given to `name`: `compute()` the first time; 0 where that is below LEAST_STEPS.

        0 is found anew when the command is run with another budget.
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
            f"--budget={self.budget.text} has no room for the step '{name}', not even for {LEAST_STEPS} steps a trial: "
            f"{self._study.record['seconds_used']:.0f} s and {self.used_steps()} steps are used; raise it and run the "
            "same command again, what was found is kept"
        )

    def _trials(self):
        return [trial for phase in self._phases for trial in phase.trials()]
