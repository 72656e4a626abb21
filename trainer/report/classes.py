"""How a classifier does on each class, and which classes it takes for which. NumPy alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from linseed.trainer.step.scores import wilson


class Measure(NamedTuple):
    """A share by class, float64 [C], with its 95 % interval; NaN where it is of no example."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class PerClass(NamedTuple):
    """support: the examples of each class, int64 [C]. answers: how often it was the answer, int64 [C]."""

    support: np.ndarray
    answers: np.ndarray
    precision: Measure
    recall: Measure
    f1: Measure


class Pair(NamedTuple):
    """`count` examples of `label`, out of its `support`, were answered by `answer`, another class."""

    label: int
    answer: int
    count: int
    support: int


def per_class(labels: np.ndarray, answers: np.ndarray, *, classes: int) -> PerClass:
    """Precision, recall and F1 of each class, from int [N].

    The intervals of precision and recall are Wilson's. F1 = 2 J / (1 + J) grows with the Jaccard index J, the share of
    right examples among those that have the class as label or answer; its limits are those of J, put in.
    """
    support, given, right = (
        np.bincount(some, minlength=classes) for some in (labels, answers, labels[labels == answers])
    )
    jaccard = _measure(right, support + given - right)
    return PerClass(
        support=support,
        answers=given,
        precision=_measure(right, given),
        recall=_measure(right, support),
        f1=Measure(*(2 * share / (1 + share) for share in jaccard)),
    )


def pairs(labels: np.ndarray, answers: np.ndarray, *, classes: int) -> list[Pair]:
    """The mistakes by label and answer, the most frequent first; of equals that of the smaller class first."""
    wrong = labels != answers
    keys, counts = np.unique(labels[wrong].astype(np.int64) * classes + answers[wrong], return_counts=True)
    support = np.bincount(labels, minlength=classes)
    found = [
        Pair(int(key // classes), int(key % classes), int(count), int(support[key // classes]))
        for key, count in zip(keys, counts, strict=True)
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.support, pair.label, pair.answer))


def confused(found: Sequence[Pair], *, classes: int, most: int) -> list[int]:
    """The classes that a matrix shows, at most `most`, in its order: all, or those of the most frequent pairs.

    Confused classes stand together. From the strongest pair on, chains of classes are joined end to end, turned so that
    the two of the pair are as near as they can be; the chains come by size.
    """
    weights: dict[tuple[int, int], int] = {}
    for pair in found:
        key = (min(pair.label, pair.answer), max(pair.label, pair.answer))
        weights[key] = weights.get(key, 0) + pair.count
    strongest = sorted(weights, key=lambda key: (-weights[key], key))
    shown = list(range(classes))
    if classes > most:
        shown = []
        for key in strongest:
            new = [each for each in key if each not in shown]
            if len(shown) + len(new) <= most:
                shown += new
    chains = {each: [each] for each in shown}
    for first, second in strongest:
        one, other = chains.get(first), chains.get(second)
        if one is None or other is None or one is other:
            continue
        if one.index(first) < len(one) / 2:
            one.reverse()
        if other.index(second) >= len(other) / 2:
            other.reverse()
        one += other
        chains |= dict.fromkeys(other, one)
    joined = {id(chain): chain for chain in chains.values()}
    return [each for chain in sorted(joined.values(), key=lambda chain: (-len(chain), min(chain))) for each in chain]


def matrix(labels: np.ndarray, answers: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """How often each of `shown` (row, the label) was answered by each (column): int64 [K, K]."""
    place = {each: place for place, each in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), np.int64)
    inside = np.isin(labels, shown) & np.isin(answers, shown)
    for label, answer in zip(labels[inside].tolist(), answers[inside].tolist(), strict=True):
        counts[place[label], place[answer]] += 1
    return counts


def _measure(right, examples):
    some = np.where(examples > 0, examples, 1)
    low, high = wilson(np.minimum(right, some), some)
    return Measure(*(np.where(examples > 0, limit, np.nan) for limit in (right / some, low, high)))
