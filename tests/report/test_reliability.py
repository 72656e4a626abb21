"""Bins of confidence and the calibration error, against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from linseed.trainer.report import reliability


def test_bins_of_equal_mass_are_scikit_learns():
    rng = np.random.default_rng(2)
    confidence = rng.permutation(np.linspace(0.2, 0.999, 1500))
    right = rng.random(1500) < confidence**2
    found = reliability.bins(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=reliability.BINS, strategy="quantile")
    np.testing.assert_allclose([each.accuracy for each in found], accuracy, atol=0.011)  # one example may move
    np.testing.assert_allclose([each.confidence for each in found], mean, atol=0.001)
    assert reliability.error(found) == pytest.approx(np.mean(np.abs(accuracy - mean)), abs=0.003)
    assert {each.examples for each in found} == {100}


def test_one_example_is_one_bin():
    (found,) = reliability.bins(np.array([0.75]), np.array([True]))
    assert found[:3] == (1, 0.75, 1.0) and reliability.error([found]) == 0.25
