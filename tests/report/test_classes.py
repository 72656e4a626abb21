"""Precision, recall, F1 and confusion against scikit-learn, and the order of a matrix."""

import numpy as np
import pytest
from sklearn import metrics

from linseed.trainer.report import classes
from linseed.trainer.step.scores import wilson


@pytest.fixture(scope="module")
def answered():
    """300 labels of 7 classes and the answers; class 5 is never answered, class 6 never the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 300)
    answers = np.where(rng.random(300) < 0.6, labels, rng.integers(0, 7, 300))
    return labels, np.where(answers == 5, 4, answers)


def test_each_class_is_as_scikit_learn_has_it(answered):
    labels, answers = answered
    found = classes.per_class(labels, answers, classes=7)
    wanted = metrics.precision_recall_fscore_support(labels, answers, labels=range(7), zero_division=np.nan)
    for measure, value in zip((found.precision, found.recall, found.f1), wanted, strict=False):
        known = ~np.isnan(value)
        np.testing.assert_allclose(measure.value[known], value[known])
        assert np.isnan(measure.value[~known]).all() or measure is found.f1
        assert (measure.low[known] <= value[known]).all() and (value[known] <= measure.high[known]).all()
    np.testing.assert_array_equal(found.support, wanted[3])
    assert np.isnan(found.precision.value[5]) and found.recall.value[5] == found.f1.value[5] == 0


def test_the_interval_of_f1_is_that_of_the_jaccard_index(answered):
    labels, answers = answered
    found = classes.per_class(labels, answers, classes=7).f1
    either, both = (labels == 2) | (answers == 2), (labels == 2) & (answers == 2)
    for limit, share in zip((found.low[2], found.high[2]), wilson(both.sum(), either.sum()), strict=True):
        assert limit / (2 - limit) == pytest.approx(share)  # J = F1 / (2 - F1)


def test_the_matrix_is_scikit_learns_in_the_order_asked_for(answered):
    labels, answers = answered
    wanted = metrics.confusion_matrix(labels, answers, labels=[3, 0, 6, 1])
    np.testing.assert_array_equal(classes.matrix(labels, answers, [3, 0, 6, 1]), wanted)


def test_pairs_are_the_mistakes_the_most_frequent_first(answered):
    labels, answers = answered
    found = classes.pairs(labels, answers, classes=7)
    assert sum(pair.count for pair in found) == np.sum(labels != answers)
    assert all(first.count >= second.count for first, second in zip(found, found[1:], strict=False))
    for pair in found:
        assert pair.count == np.sum((labels == pair.label) & (answers == pair.answer)) and pair.label != pair.answer
        assert pair.support == np.sum(labels == pair.label)


def test_confused_classes_stand_together_and_of_many_the_most_confused_are_shown():
    pairs = [
        classes.Pair(0, 700, 9, 10),
        classes.Pair(999, 3, 8, 10),
        classes.Pair(3, 700, 2, 10),
        classes.Pair(5, 6, 1, 10),
    ]
    assert classes.confused(pairs, classes=1000, most=4) in ([0, 700, 3, 999], [999, 3, 700, 0])
    small = [classes.Pair(0, 3, 5, 10), classes.Pair(3, 1, 4, 10)]
    order = classes.confused(small, classes=4, most=20)
    assert sorted(order) == [0, 1, 2, 3] and order[:3] in ([0, 3, 1], [1, 3, 0])
    assert classes.confused([], classes=3, most=20) == [0, 1, 2]
