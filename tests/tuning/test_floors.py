"""The levels of the loss that the curve doctor knows are those that the losses themselves give."""

import math

import numpy as np
import pytest

from linseed.trainer.step import losses
from linseed.trainer.tuning.diagnosis import floors


@pytest.mark.parametrize("name", losses.LOSSES)
def test_chance_is_the_best_that_equal_logits_can_do(name):
    kwargs = {} if name == "svm" else {"label_smoothing": 0.1}
    kwargs |= {"class_weights": (1.0,) * 7} if name == "weighted_softmax" else {}
    labels = np.array([0, 3, 6])
    guesses = [np.full((3, 7), logit, np.float32) for logit in np.linspace(-4, 4, 801)]
    best = min(float(np.mean(losses.LOSSES[name](guess, labels, **kwargs))) for guess in guesses)
    np.testing.assert_allclose(best, floors.chance_loss(name, num_classes=7), rtol=1e-4)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_the_floor_is_the_loss_of_logits_that_give_the_targets(name):
    """Softmax: logits log t. Sigmoid: logits log(t / (1 - t))."""
    targets = np.full((1, 5), 0.2 / 5)
    targets[0, 2] += 0.8
    logits = np.log(targets) if name == "softmax" else np.log(targets / (1 - targets))
    value = losses.LOSSES[name](np.float32(logits), np.array([2]), label_smoothing=0.2)
    np.testing.assert_allclose(value, floors.lowest_loss(name, num_classes=5, label_smoothing=0.2), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_floor_of_two_softmaxes_is_the_loss_of_a_one_hot_logit(smoothing):
    value = losses.softmax(np.eye(10, dtype=np.float32)[:1], np.array([0]), label_smoothing=smoothing)
    floor = floors.double_softmax_loss(num_classes=10, label_smoothing=smoothing)
    np.testing.assert_allclose(value, floor, rtol=1e-5)
    assert smoothing or floor == pytest.approx(math.log(1 + 9 / math.e))
