"""Temperature scaling: one number by which logits are divided, so that probabilities are as large as they are right.

Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
"""

import numpy as np

_LOW, _HIGH = 0.01, 100.0
_TOLERANCE = 1e-5  # relative
_DIGITS = 4  # that are kept: the last bits of logits differ from machine to machine


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.01, 100] whose softmax(logits / T) has the least negative log-likelihood.

    logits: float [N, C]; labels: int [N]. 1 for logits that are not finite. The targets are smoothed by 1 / (N + 2), as
    Platt 1999 does ("Probabilistic outputs for support vector machines", section 2.2): N images without an error do not
    show that there is none, and without it T would be 0.
    """
    logits = np.asarray(logits, np.float64)
    count, classes = logits.shape
    if not np.isfinite(logits).all():
        return 1.0
    missed = 1 / (count + 2)
    wanted = (1 - missed) * logits[np.arange(count), labels].mean() + missed * logits.mean()
    low, high = 1 / _HIGH, 1 / _LOW  # of 1 / T, in which the loss is convex: its slope grows
    while high > low * (1 + _TOLERANCE):
        middle = np.sqrt(low * high)
        slope = np.mean(np.sum(np.exp(log_softmax(logits * middle)) * logits, axis=1)) - wanted
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(f"{1 / np.sqrt(low * high):.{_DIGITS}g}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row, float [N, C] -> float64 [N, C]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
