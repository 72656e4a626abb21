"""The temperature is where the likelihood is largest."""

import numpy as np
import pytest
import scipy.special

from linseed.trainer.step.calibration import log_softmax, temperature


def nll(logits, labels, by):
    return -np.mean(scipy.special.log_softmax(logits / by, axis=1)[np.arange(len(labels)), labels])


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_it_finds_the_temperature_of_labels_drawn_by_it(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20_000, 5))
    labels = np.argmax(logits / true + rng.gumbel(size=logits.shape), axis=1)  # drawn with these probabilities
    found = temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.05)
    assert nll(logits, labels, found) <= min(nll(logits, labels, found * by) for by in (0.95, 1.05))


def test_images_without_an_error_do_not_make_it_certain():
    labels = np.arange(100) % 4
    logits = np.eye(4)[labels] * 3.0
    most = scipy.special.softmax(logits / temperature(logits, labels), axis=1).max()
    # Each is right with 1 - eps + eps / 4, where eps is 1 / 102: what the smoothed targets say.
    assert most == pytest.approx(1 - 0.75 / 102, abs=1e-4)


def test_logits_that_say_nothing_and_scales_beyond_its_range():
    labels = np.arange(40) % 2
    assert temperature(np.zeros((40, 2)), labels) == pytest.approx(0.01, rel=1e-3)
    assert temperature(np.full((40, 2), np.nan), labels) == 1.0
    wrong = np.eye(2)[1 - labels] * 1e3
    assert temperature(wrong, labels) == pytest.approx(100, rel=1e-3)


def test_it_is_stable_against_the_last_bits():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 3, (500, 5)).astype(np.float32), rng.integers(0, 5, 500)
    labels[::2] = logits[::2].argmax(axis=1)
    assert temperature(logits, labels) == temperature(logits * (1 + 1e-7), labels)


def test_large_logits_overflow_nothing():
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]], np.float32)
    assert np.isfinite(temperature(logits, np.array([0, 1, 1])))
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits.astype(np.float64), axis=1))
