"""Whether confidence is the share that is right: temperature scaling, and the calibration error. NumPy alone."""

from typing import NamedTuple

import numpy as np

from linseed.trainer.step.scores import wilson

BINS = 15
LIMITS = (0.05, 20.0)  # of the temperature
_LEAST_IN_BIN = 10
_MOST_STEPS = 60
_TOLERANCE = 1e-6


class Bin(NamedTuple):
    """Examples of about the same confidence. confidence: their mean. low, high: the 95 % interval of accuracy."""

    examples: int
    confidence: float
    accuracy: float
    low: float
    high: float


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [N, C] of float [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T within LIMITS with the least mean of -log softmax(logits / T)[label] (Guo et al. 2017).

    logits: float [N, C]. labels: int [N]. The loss is convex in 1 / T: a root of its derivative, by Newton's steps
    within a bracket that halves where a step would leave it.
    """
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    wanted = logits[np.arange(len(labels)), labels].mean()
    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    scale = 1.0
    for _ in range(_MOST_STEPS):
        shares = np.exp(scale * logits)
        shares /= shares.sum(axis=1, keepdims=True)
        expected = (shares * logits).sum(axis=1)
        slope = expected.mean() - wanted
        curvature = ((shares * logits**2).sum(axis=1) - expected**2).mean()
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else np.inf
        step = step if low < step < high else (low + high) / 2
        if abs(step - scale) < _TOLERANCE * scale:
            break
        scale = step
    return float(1 / step)


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
