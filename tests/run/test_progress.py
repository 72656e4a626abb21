"""The best so far, and how long nothing got better."""

import json

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
    assert progress.best_score == max(accuracies)
    assert progress.val == {"accuracy": accuracies[-1]}


def test_json_brings_it_back():
    progress = after([0.1, 0.5, 0.2]).timed(images=100, seconds=2.0).replace(seconds=9.0)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_the_monitor_chooses_the_best_and_what_is_stale():
    found = [
        {"accuracy": 0.98, "balanced_accuracy": 0.5, "loss": 0.1},
        {"accuracy": 0.97, "balanced_accuracy": 0.6, "loss": 3.0},
        {"accuracy": 0.96, "balanced_accuracy": 0.55, "loss": 0.05},
    ]
    for monitor, best_step, stale in [("accuracy", 1, 2), ("balanced_accuracy", 2, 1), ("loss", 3, 0)]:
        progress = Progress(fingerprint="", num_devices=1, monitor=monitor)
        for step, val in enumerate(found, start=1):
            progress = progress.evaluated(step, val, min_delta=0.01)
        assert (progress.best_step, progress.stale_evaluations) == (best_step, stale), monitor


def test_the_checkpoint_of_an_earlier_version_goes_on_by_accuracy():
    saved = after([0.1, 0.5, 0.2]).to_json()
    del saved["monitor"]
    saved["best_accuracy"], saved["mark_accuracy"] = saved.pop("best_score"), saved.pop("mark_score")
    progress = Progress.from_json(saved)
    assert (progress.monitor, progress.best_score, progress.mark_score) == ("accuracy", 0.5, 0.5)
    assert progress == after([0.1, 0.5, 0.2])
