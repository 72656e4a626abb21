"""Accuracy by brightness, size and shape."""

import numpy as np

from linseed.trainer.report import groups
from linseed.trainer.report.predictions import Predictions

COUNT = 80


def predictions(**changes):
    zeros = np.zeros(COUNT, np.int32)
    found = Predictions(**dict.fromkeys(Predictions._fields, zeros))
    return found._replace(**changes)


def test_quarters_hold_every_example_once_and_their_accuracy():
    brightness = np.random.default_rng(0).permutation(COUNT).astype(np.float32)
    found = predictions(brightness=brightness, answer=(brightness >= 20).astype(np.int32) * 0 + (brightness < 20))
    ((_, quarters),) = groups.by_kind(found)
    assert [group.examples for group in quarters] == [20] * 4
    assert [group.accuracy for group in quarters] == [0.0, 1.0, 1.0, 1.0]
    assert all(group.low <= group.accuracy <= group.high for group in quarters)


def test_images_that_are_all_alike_give_no_table():
    assert groups.by_kind(predictions()) == []


def test_sizes_and_shapes_are_of_the_originals_that_are_known():
    width = np.array([0, 100, 200, 400] * 20, np.int32)
    height = np.array([0, 200, 200, 200] * 20, np.int32)
    (name, sides), (_, shapes) = groups.by_kind(predictions(width=width, height=height))
    assert name.startswith("shorter side") and sum(group.examples for group in sides) == 60
    assert [group.name.split()[0] for group in shapes] == ["tall", "about", "wide"]
    assert [group.examples for group in shapes] == [20, 20, 20]
