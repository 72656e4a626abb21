"""Temperature scaling and the calibration error, against scikit-learn and first principles."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from linseed.trainer.report import calibration


@pytest.fixture(scope="module")
def outputs():
    """Logits whose softmax is right, labels drawn from it."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4000, 5)).astype(np.float32)
    shares = np.exp(calibration.log_softmax(logits))
    return logits, np.array([rng.choice(5, p=row / row.sum()) for row in shares])


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale_and_has_the_least_loss(outputs, factor):
    logits, labels = outputs
    found = calibration.fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.06)

    def loss(temperature):
        return log_loss(labels, np.exp(calibration.log_softmax(factor * logits / temperature)))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


def test_the_temperature_stays_within_its_limits():
    logits = np.array([[3.0, 0.0], [0.0, 2.0]])
    assert calibration.fit_temperature(logits, np.array([0, 1])) == pytest.approx(calibration.LIMITS[0], rel=1e-3)
    assert calibration.fit_temperature(logits, np.array([1, 0])) == pytest.approx(calibration.LIMITS[1], rel=1e-3)


def test_large_logits_overflow_nothing():
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [1e4, 0.0]], np.float32)
    assert np.isfinite(calibration.fit_temperature(logits, np.array([0, 1, 1])))


def test_bins_of_equal_mass_are_scikit_learns():
    rng = np.random.default_rng(2)
    confidence = rng.permutation(np.linspace(0.2, 0.999, 1500))
    right = rng.random(1500) < confidence**2
    found = calibration.bins(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=calibration.BINS, strategy="quantile")
    np.testing.assert_allclose([each.accuracy for each in found], accuracy, atol=0.011)  # one example may move
    np.testing.assert_allclose([each.confidence for each in found], mean, atol=0.001)
    assert calibration.error(found) == pytest.approx(np.mean(np.abs(accuracy - mean)), abs=0.003)
    assert {each.examples for each in found} == {100}


def test_one_example_is_one_bin():
    (found,) = calibration.bins(np.array([0.75]), np.array([True]))
    assert found[:3] == (1, 0.75, 1.0) and calibration.error([found]) == 0.25
