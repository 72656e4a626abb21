"""What a run remembers besides the state: its data, the best evaluation, early stopping, the clock, the last log."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved as JSON in every checkpoint.

    fingerprint: of the train and validation splits. num_devices: how many devices the run began on. val: the last
    evaluation (`accuracy`, `loss`, `examples`). best_step, best_accuracy: the best evaluation, the later one of equals.
    mark_accuracy: what the next evaluation must beat by `min_delta`. stale_evaluations: how many in a row did not.
    seconds: of the whole run, start-up and evaluation included. timed_images, timed_seconds: of the steps alone,
    without those that waited for the compiler. skipped: how many steps in a row were skipped before the last log, see
    `nonfinite.skipping`. logged: the step of the last log, 0 before the first. rows: the metrics of the steps since
    the last log, one `metrics.pack` a step; empty unless the run was stopped between two logs.
    """

    fingerprint: str
    num_devices: int
    val: dict[str, float] = dataclasses.field(default_factory=dict)
    best_step: int = 0
    best_accuracy: float = -1.0
    mark_accuracy: float = -1.0
    stale_evaluations: int = 0
    seconds: float = 0.0
    timed_images: int = 0
    timed_seconds: float = 0.0
    skipped: int = 0
    logged: int = 0
    rows: list[list[float]] = dataclasses.field(default_factory=list)

    def replace(self, **changes) -> "Progress":
        """A copy with other values of some fields."""
        return dataclasses.replace(self, **changes)

    def evaluated(self, step: int, val: dict[str, float], *, min_delta: float) -> "Progress":
        """After an evaluation. Small gains add up: the mark moves only when it is beaten by more than `min_delta`."""
        accuracy = val["accuracy"]
        beaten = not self.best_step or accuracy > self.mark_accuracy + min_delta
        return self.replace(
            val=val,
            best_step=step if accuracy >= self.best_accuracy else self.best_step,
            best_accuracy=max(accuracy, self.best_accuracy),
            mark_accuracy=accuracy if beaten else self.mark_accuracy,
            stale_evaluations=0 if beaten else self.stale_evaluations + 1,
        )

    def timed(self, *, images: int, seconds: float) -> "Progress":
        """After `images` were trained on in `seconds` of uninterrupted stepping."""
        return self.replace(timed_images=self.timed_images + images, timed_seconds=self.timed_seconds + seconds)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
