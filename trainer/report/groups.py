"""Accuracy on kinds of images: dark and bright, small and large, upright and wide. NumPy alone."""

from typing import NamedTuple

import numpy as np

from linseed.trainer.report.predictions import Predictions
from linseed.trainer.step.scores import wilson

QUARTERS = 4
WIDE = 1.25  # width over height from which an image is wide, and below whose inverse it is tall


class Group(NamedTuple):
    """A kind of images, in words, and the accuracy on them with its 95 % interval."""

    name: str
    examples: int
    accuracy: float
    low: float
    high: float


def by_kind(found: Predictions) -> list[tuple[str, list[Group]]]:
    """(what the images are told apart by, the groups) of each kind that at least two groups have images of."""
    kinds = [("brightness, the mean pixel of 0 to 255", _quarters(found.brightness, found.right))]
    known = found.width > 0
    if known.any():
        width, height, right = found.width[known], found.height[known], found.right[known]
        kinds.append(("shorter side of the original, in pixels", _quarters(np.minimum(width, height), right)))
        kinds.append(("shape of the original", _shapes(width / height, right)))
    return [(name, groups) for name, groups in kinds if len(groups) > 1]


def _quarters(values, right):
    """Four groups of about equally many examples by `values`; equal values are in one group."""
    limits = np.unique(np.quantile(values, np.arange(1, QUARTERS) / QUARTERS, method="lower"))
    place = np.searchsorted(limits, values)
    groups = []
    for number in np.unique(place):
        inside = place == number
        low, high = values[inside].min(), values[inside].max()
        groups.append(_group(f"{low:,.0f} to {high:,.0f}" if low < high else f"{low:,.0f}", right[inside]))
    return groups


def _shapes(ratio, right):
    shapes = {
        f"tall (width below {1 / WIDE:g} of the height)": ratio < 1 / WIDE,
        "about square": (ratio >= 1 / WIDE) & (ratio <= WIDE),
        f"wide (width over {WIDE:g} times the height)": ratio > WIDE,
    }
    return [_group(name, right[inside]) for name, inside in shapes.items() if inside.any()]


def _group(name, right):
    correct = int(right.sum())
    low, high = wilson(correct, len(right))
    return Group(name, len(right), correct / len(right), float(low), float(high))
