"""Whether confidence is the share that is right: bins of it, and the calibration error. NumPy alone."""

from typing import NamedTuple

import numpy as np

from linseed.trainer.step.scores import wilson

BINS = 15
_LEAST_IN_BIN = 10


class Bin(NamedTuple):
    """Examples of about the same confidence. confidence: their mean. low, high: the 95 % interval of accuracy."""

    examples: int
    confidence: float
    accuracy: float
    low: float
    high: float


def bins(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Bins of equally many examples, by confidence: at most BINS, of at least 10 examples each, and at least one.

    confidence: float [N], of the answer. right: bool [N]. N is at least 1.
    """
    order = np.argsort(confidence, kind="stable")
    found = []
    for some in np.array_split(order, min(BINS, max(1, len(order) // _LEAST_IN_BIN))):
        correct = int(right[some].sum())
        low, high = wilson(correct, len(some))
        found.append(Bin(len(some), float(confidence[some].mean()), correct / len(some), float(low), float(high)))
    return found


def error(found: list[Bin]) -> float:
    """The expected calibration error: the mean of |accuracy - confidence| over the examples of bins of equal mass.

    Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language processing models".
    """
    total = sum(each.examples for each in found)
    return sum(each.examples * abs(each.accuracy - each.confidence) for each in found) / total
