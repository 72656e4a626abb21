"""What the loop remembers besides the state: the best evaluation so far, early stopping, the clock."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Saved with every snapshot, as JSON.

    val: the evaluation at this step (`accuracy`, `loss`, `examples`). best_step, best_accuracy: the
    best so far, the later one of equals. stale_evaluations: how many in a row brought nothing better.
    seconds: of all parts of the run, start-up and evaluation included. timed_images,
    timed_seconds: of the steps alone, without those that waited for the compiler.
    """

    val: dict[str, float] = dataclasses.field(default_factory=dict)
    best_step: int = 0
    best_accuracy: float = -1.0
    stale_evaluations: int = 0
    seconds: float = 0.0
    timed_images: int = 0
    timed_seconds: float = 0.0

    def evaluated(self, step: int, val: dict[str, float], *, min_delta: float) -> "Progress":
        """After an evaluation: better is more than `min_delta` (accuracy, 0..1) above the best so far."""
        better = val["accuracy"] > self.best_accuracy + min_delta or not self.best_step
        best = val["accuracy"] >= self.best_accuracy
        return dataclasses.replace(
            self,
            val=val,
            best_step=step if best else self.best_step,
            best_accuracy=max(val["accuracy"], self.best_accuracy),
            stale_evaluations=0 if better else self.stale_evaluations + 1,
        )

    def timed(self, *, images: int, seconds: float) -> "Progress":
        """After `images` were trained on in `seconds` of uninterrupted stepping."""
        return dataclasses.replace(
            self, timed_images=self.timed_images + images, timed_seconds=self.timed_seconds + seconds
        )

    def at(self, *, seconds: float) -> "Progress":
        """With the clock set to `seconds`."""
        return dataclasses.replace(self, seconds=seconds)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
