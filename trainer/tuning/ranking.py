"""A trial as the storage has it, and which of several is the best."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from optuna.trial import TrialState

from linseed.trainer.errors import LinseedError
from linseed.trainer.tuning.space import Point
from linseed.trainer.tuning.trials import Outcome


class Trial(NamedTuple):
    """A trial in the storage: its point, and the outcome of each rung that it ran (steps -> outcome)."""

    id: str
    workdir: str  # its own name, or the name of the trial that it continues
    number: int
    point: Point
    rungs: dict[int, Outcome]
    reported: frozenset[int]  # steps whose accuracy was reported to Optuna
    state: TrialState
    attributes: dict[str, Any]

    @property
    def last(self) -> Outcome:
        return self.rungs[max(self.rungs)] if self.rungs else Outcome(0)


def score(outcome: Outcome) -> float:
    """What config.eval.monitor names, the higher the better; studies of earlier versions know the accuracy alone."""
    return outcome.val_accuracy if math.isnan(outcome.score) else outcome.score


def rank(trial: Trial, by: Callable[[Outcome], float]) -> float:
    """`by` of the trial's last outcome; -inf if the trial failed or the value is NaN."""
    value = -math.inf if trial.last.failed or not trial.rungs else by(trial.last)
    return -math.inf if math.isnan(value) else value


def best_within_a_standard_error(trials: Sequence[Trial]) -> Trial:
    """The trial with the most decay, of those within one standard error of the best score.

    The 1-SE rule of Breiman et al. 1984: of equals, the simplest. Raises LinseedError if all failed.
    """
    sound = [trial for trial in trials if rank(trial, score) > -math.inf]
    if not sound:
        raise LinseedError("every trial of this step failed; fix the problems of the earlier steps in study.html")
    best = max(sound, key=lambda trial: rank(trial, score)).last
    error = best.score_error
    if math.isnan(error):  # of an earlier version, which scored by accuracy
        error = math.sqrt(best.val_accuracy * (1 - best.val_accuracy) / best.val_examples)
    equals = [trial for trial in sound if score(trial.last) >= score(best) - error]
    return max(equals, key=lambda trial: (trial.point["weight_decay"], rank(trial, score)))
