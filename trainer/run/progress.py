"""What a run remembers besides the state: its data, the best evaluation, early stopping, the clock, the last log."""

import dataclasses
import math
from typing import Any

from linseed.trainer.step.scores import score

_RENAMED = {"best_accuracy": "best_score", "mark_accuracy": "mark_score"}


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved as JSON in every checkpoint.

    fingerprint: of the train and validation splits. test_fingerprint: of the test split, without its pixels, "" where
    it is not known. num_devices: how many devices the run began on. val: the last evaluation (`scores.scores`).
    monitor: the score that evaluations are compared by, see `scores.score`. best_step, best_score: the best evaluation,
    the later one of equals. mark_score: what the next evaluation must beat by `min_delta`. stale_evaluations: how many
    in a row did not.
    seconds: of the whole run, start-up and evaluation included. timed_images, timed_seconds: of the steps alone,
    without those that waited for the compiler. skipped: how many steps in a row were skipped before the last log, see
    `nonfinite.skipping`. logged: the step of the last log, 0 before the first. rows: the metrics of the steps since
    the last log, one `metrics.pack` a step; empty unless the run was stopped between two logs. judged_by: the settings
    of the evaluations, `programs.judged_by`. batch_size: examples a step, 0 if an earlier version saved it. shift: the
    examples seen so far are `(step + shift) * batch_size`; not 0 once the batch size has changed.
    """

    fingerprint: str
    num_devices: int
    val: dict[str, Any] = dataclasses.field(default_factory=dict)
    monitor: str = "accuracy"
    best_step: int = 0
    best_score: float = -math.inf
    mark_score: float = -math.inf
    stale_evaluations: int = 0
    seconds: float = 0.0
    timed_images: int = 0
    timed_seconds: float = 0.0
    skipped: int = 0
    logged: int = 0
    rows: list[list[float]] = dataclasses.field(default_factory=list)
    judged_by: str = ""
    batch_size: int = 0
    shift: int = 0
    test_fingerprint: str = ""

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """What `to_json` gave, also in a version that knew no other score than the accuracy."""
        return cls(**{_RENAMED.get(key, key): value for key, value in saved.items()})

    def replace(self, **changes) -> "Progress":
        """A copy with other values of some fields."""
        return dataclasses.replace(self, **changes)

    def evaluated(self, step: int, val: dict[str, Any], *, min_delta: float) -> "Progress":
        """After an evaluation. Small gains add up: the mark moves only when it is beaten by more than `min_delta`."""
        found = score(val, self.monitor)
        beaten = not self.best_step or found > self.mark_score + min_delta
        return self.replace(
            val=val,
            best_step=step if found >= self.best_score else self.best_step,
            best_score=max(found, self.best_score),
            mark_score=found if beaten else self.mark_score,
            stale_evaluations=0 if beaten else self.stale_evaluations + 1,
        )

    def judged_anew(self, *, by: str, monitor: str, best: tuple[int, float] | None) -> "Progress":
        """After all kept checkpoints were judged by other settings. monitor: as the field. best: step and score of
        the best, if any.

        It is what the next evaluation must beat; early stopping counts from here.
        """
        step, found = best or (0, -math.inf)
        return self.replace(
            judged_by=by,
            monitor=monitor,
            best_step=step,
            best_score=found,
            mark_score=found,
            stale_evaluations=0,
        )

    def is_stale(self, patience: int) -> bool:
        """Whether early stopping with this patience ends the run; 0 never does."""
        return 0 < patience <= self.stale_evaluations

    def timed(self, *, images: int, seconds: float) -> "Progress":
        """After `images` were trained on in `seconds` of uninterrupted stepping."""
        return self.replace(timed_images=self.timed_images + images, timed_seconds=self.timed_seconds + seconds)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
