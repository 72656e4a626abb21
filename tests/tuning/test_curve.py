"""What is measured of a curve is what the curve was drawn from: its clock, its noise, its restarts."""

import numpy as np
import pytest

from linseed.trainer.tuning.diagnosis.curve import Accuracy, read

CONFIG = {
    "data": {"batch_size": 64, "train_examples": 0},
    "loss": {"name": "softmax"},
    "label_smoothing": 0.0,
}


def curve(*, rate, loss, every=10):
    """Of a record every `every` steps, with the rate and the loss of each."""
    fields = dict(epoch=1.0, train_accuracy=0.5, grad_norm=1.0, update_ratio=1e-3)
    pairs = enumerate(zip(rate, loss, strict=True))
    records = [{"step": (i + 1) * every, "lr": lr, "train_loss": value} | fields for i, (lr, value) in pairs]
    return read(records, num_classes=10, config=CONFIG)


def test_the_clock_runs_as_fast_as_the_rate_is_high():
    """Three quarters of the summed rate are in the first half where it is three times that of the second."""
    measured = curve(rate=[0.3] * 50 + [0.1] * 50, loss=[1.0] * 100)
    assert measured.clock[49] == pytest.approx(0.75) and measured.clock[-1] == pytest.approx(1.0)
    assert measured.median(measured.rate, 0.75, 1.0) == pytest.approx(0.1)
    np.testing.assert_allclose(curve(rate=[0.0] * 4, loss=[1.0] * 4).clock, [0.25, 0.5, 0.75, 1.0])


def test_a_part_holds_at_least_three_records():
    measured = curve(rate=[1.0] * 100, loss=[1.0] * 100)
    assert measured.part(0.5, 0.75).sum() == 25
    assert np.flatnonzero(measured.part(0.495, 0.505)).tolist() == [48, 49, 50]


def test_noise_is_that_which_was_drawn_however_the_loss_falls():
    rng = np.random.default_rng(0)
    loss = np.linspace(3.0, 1.0, 2000) + rng.normal(scale=0.02, size=2000)
    assert np.median(curve(rate=[1.0] * 2000, loss=loss).noise) == pytest.approx(0.02, rel=0.1)


def test_a_warm_up_is_no_restart():
    rate = [0.1, 0.5, 1.0, 0.7, 0.4, 0.1, 1.0, 0.5]
    assert np.flatnonzero(curve(rate=rate, loss=[1.0] * 8).restarted).tolist() == [6, 7]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guesses_seldom_beat_chance(classes):
    """Three sigmas and a tenth for the frequencies of the classes: fewer than one guesser in 500."""
    rng = np.random.default_rng(0)
    right = rng.binomial(2000, 1 / classes, size=5000) / 2000
    assert np.mean([Accuracy(share, 2000).beats_chance(classes=classes) for share in right]) < 1 / 500
    assert Accuracy(min(1.0, 2 / classes), 5000).beats_chance(classes=classes)


def test_an_accuracy_of_all_or_nothing_is_not_certain():
    assert Accuracy(1.0, 10).error > 0 and Accuracy(0.0, 10).error > 0
    assert Accuracy(0.5, 10_000).error == pytest.approx(0.005, rel=1e-2)
