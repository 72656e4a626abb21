"""What the loop remembers besides the state: the data it began with, the best evaluation, early stopping, the clock."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved with every snapshot, as JSON.

    fingerprint: of the train and validation splits. num_devices: how many the run began on. val: the
    evaluation at this step (`accuracy`, `loss`, `examples`). best_step, best_accuracy: the best so far,
    the later one of equals. mark_accuracy: what the next evaluation has to beat by `min_delta`, and
    stale_evaluations: how many in a row did not. seconds: of all parts of the run, start-up and
    evaluation included. timed_images, timed_seconds: of the steps alone, without those that waited
    for the compiler. skipped: how many steps in a row were skipped (`guard.skipping`) before the last log. logged: the
    step of the last log, 0 before the first. rows: where the run stopped between two logs, the metrics of the steps
    since the first of them, as `metrics.pack` has them.
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

    def evaluated(self, step: int, val: dict[str, float], *, min_delta: float) -> "Progress":
        """After an evaluation. Small gains add up: the mark moves only when it is beaten by more than `min_delta`."""
        accuracy = val["accuracy"]
        beaten = not self.best_step or accuracy > self.mark_accuracy + min_delta
        return dataclasses.replace(
            self,
            val=val,
            best_step=step if accuracy >= self.best_accuracy else self.best_step,
            best_accuracy=max(accuracy, self.best_accuracy),
            mark_accuracy=accuracy if beaten else self.mark_accuracy,
            stale_evaluations=0 if beaten else self.stale_evaluations + 1,
        )

    def timed(self, *, images: int, seconds: float) -> "Progress":
        """After `images` were trained on in `seconds` of uninterrupted stepping."""
        return dataclasses.replace(
            self, timed_images=self.timed_images + images, timed_seconds=self.timed_seconds + seconds
        )

    def at(self, *, seconds: float) -> "Progress":
        """With the clock set to `seconds`."""
        return dataclasses.replace(self, seconds=seconds)

    def skipping(self, skipped: int) -> "Progress":
        """With `skipped` steps in a row skipped, up to a log."""
        return dataclasses.replace(self, skipped=skipped)

    def logging(self, step: int) -> "Progress":
        """With a record written at `step`."""
        return dataclasses.replace(self, logged=step)

    def within(self, rows: list[list[float]]) -> "Progress":
        """In the middle of a log window, of whose steps `rows` are the metrics."""
        return dataclasses.replace(self, rows=rows)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
