"""Which checkpoints of a run are kept, and which one is best on validation."""

import math
from collections.abc import Mapping

from orbax.checkpoint import checkpoint_managers

METRIC = "val_accuracy"


def is_evaluated(found: Mapping[str, float]) -> bool:
    """Whether a checkpoint with the metrics `found` was made at an evaluation."""
    return found[METRIC] > -math.inf


def best(accuracies: Mapping[int, float]) -> tuple[int, float] | None:
    """The step and the accuracy of the best of `accuracies`, {step: accuracy}, the later one of equals."""
    return max(accuracies.items(), key=lambda item: item[::-1], default=None)


class Kept(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoint, and of those made at an evaluation the newest `n` and the best.

    judged: {step: accuracy} of those that were judged anew.
    """

    def __init__(self, n: int, *, judged: Mapping[int, float]):
        self._n, self._judged = n, judged

    def should_preserve(self, checkpoints, *, context):
        accuracies = {
            info.step: self._judged.get(info.step, info.metrics[METRIC])
            for info in checkpoints
            if is_evaluated(info.metrics)
        }
        newest = [info.step for info in checkpoints][-1:]
        kept = {*newest, *list(accuracies)[-self._n :], *(best(accuracies) or ())[:1]}
        return [info.step in kept for info in checkpoints]
