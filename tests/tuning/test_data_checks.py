"""Step 1 on the data: what the images and labels of two splits say before there is a network."""

import numpy as np
import pytest

from linseed.trainer.data import duplicates
from linseed.trainer.data.splits import Split
from linseed.trainer.tuning import data_checks

CLASSES = 4


def split(count=400, *, seed=0, mean=100.0, spread=20.0):
    rng = np.random.default_rng(seed)
    images = mean + spread * rng.normal(size=(count, 1, 1, 2)) + 30 * rng.normal(size=(count, 6, 6, 2))
    return Split(np.clip(images, 0, 255).astype(np.uint8), (np.arange(count) % CLASSES).astype(np.int32))


def found(train, val):
    return data_checks.splits(train, val, leaked=duplicates.share_in_train(train, val))


def causes(train, val):
    findings = found(train, val)
    assert all(finding.evidence and finding.remedy for finding in findings)
    return [finding.cause for finding in findings]


@pytest.mark.parametrize("count", [8, 80, 400])
def test_splits_of_one_kind_raise_no_alarm(count):
    for seed in range(5):
        assert causes(split(seed=seed), split(count, seed=100 + seed)) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_validation_images_that_are_in_train_are_counted(share):
    train, val = split(), split(100, seed=1)
    images = val.images.copy()
    images[: round(100 * share)] = train.images[200 : 200 + round(100 * share)]
    (finding,) = found(train, Split(images, val.labels))
    assert finding.cause == "leaked_validation" and finding.evidence.startswith(f"{share:.0%}")


def test_blank_images_of_several_classes_contradict_each_other():
    train = split()
    train.images[::4] = 0
    assert causes(train, split(seed=1)) == [], "all of one class"
    train.images[1::4] = 0
    assert causes(train, split(seed=1)) == ["conflicting_labels"]


def test_validation_without_a_class_that_it_should_have():
    train, val = split(), split(100, seed=1)
    assert causes(train, Split(val.images, val.labels % 2)) == ["val_distribution"]
    few = split(16, seed=1)
    assert causes(train, Split(few.images, few.labels % 2)) == [], "four of sixteen may be missing"


@pytest.mark.parametrize("change", [lambda x: 255 - x, lambda x: x // 4, lambda x: 110 + x // 8])
def test_validation_of_another_brightness_or_contrast(change):
    val = split(100, seed=1)
    assert causes(split(), Split(change(val.images), val.labels)) == ["val_distribution"]


def test_a_slightly_brighter_validation_is_no_alarm():
    assert causes(split(), split(100, seed=1, mean=108.0)) == []
