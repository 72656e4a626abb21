"""The best so far, and how long nothing got better."""

import pytest

from linseed.trainer.run.progress import Progress


def after(accuracies, *, min_delta=0.0):
    progress = Progress(fingerprint="", num_devices=1)
    for step, accuracy in enumerate(accuracies, start=1):
        progress = progress.evaluated(step, {"accuracy": accuracy}, min_delta=min_delta)
    return progress


@pytest.mark.parametrize(
    ("accuracies", "min_delta", "best_step", "stale"),
    [
        ([0.1], 0.0, 1, 0),
        ([0.0], 0.0, 1, 0),
        ([0.1, 0.2, 0.3], 0.0, 3, 0),
        ([0.3, 0.2, 0.1], 0.0, 1, 2),
        ([0.3, 0.3, 0.3], 0.0, 3, 2),
        ([0.30, 0.31, 0.32], 0.05, 3, 2),
        ([0.30, 0.33, 0.36, 0.39], 0.05, 4, 1),  # small gains add up
        ([0.3, 0.1, 0.4, 0.2], 0.0, 3, 1),
    ],
)
def test_best_is_the_later_of_equals_and_staleness_counts_evaluations(accuracies, min_delta, best_step, stale):
    progress = after(accuracies, min_delta=min_delta)
    assert (progress.best_step, progress.stale_evaluations) == (best_step, stale)
    assert progress.best_accuracy == max(accuracies)
    assert progress.val == {"accuracy": accuracies[-1]}


def test_json_brings_it_back():
    progress = after([0.1, 0.5, 0.2]).timed(images=100, seconds=2.0).replace(seconds=9.0)
    assert Progress(**progress.to_json()) == progress
