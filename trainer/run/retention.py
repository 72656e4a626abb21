"""Which checkpoints of a run are kept, and which one is best on validation."""

import math
from collections.abc import Mapping

METRIC = "val_accuracy"


def is_evaluated(found: Mapping[str, float]) -> bool:
    """Whether a checkpoint with the metrics `found` was made at an evaluation."""
    return found[METRIC] > -math.inf


def best(accuracies: Mapping[int, float]) -> tuple[int, float] | None:
    """The step and the accuracy of the best of `accuracies`, {step: accuracy}, the later one of equals."""
    return max(accuracies.items(), key=lambda item: item[::-1], default=None)


def kept(measured: Mapping[int, float], n: int, *, judged: Mapping[int, float]) -> set[int]:
    """The steps to keep of `measured`, {step: accuracy}: the newest, of the evaluated the newest `n` and the best.

    judged: {step: accuracy} of those that were judged anew.
    """
    accuracies = {step: judged.get(step, measured[step]) for step in sorted(measured) if measured[step] > -math.inf}
    return {max(measured), *list(accuracies)[-n:], *(best(accuracies) or ())[:1]}
