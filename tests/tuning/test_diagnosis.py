"""The benchmark of planted faults, in miniature; and that what is planted is what its name says."""

from unittest import mock

import numpy as np
import pytest

from linseed import models
from linseed.scripts.bench import diagnosis, plants
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import sources
from linseed.trainer.errors import LinseedError
from linseed.trainer.tuning.diagnosis.findings import CAUSES

DIGITS = dict(test_fraction=0.2, split_seed=0)


def test_a_planted_fault_is_named_and_a_clean_seed_is_silent(monkeypatch):
    """One step of the seven, a small network, and a run of two epochs: the table's form, not its figures."""
    monkeypatch.setattr(diagnosis, "STEPS", ("check",))
    monkeypatch.setattr(diagnosis, "BASES", {"mlp": diagnosis.BASES["mlp"]})
    known = dict(models.MODELS)
    result = diagnosis.measure(faults=["zero weights"], seeds=1, epochs=2.0)
    (planted,), (clean,) = result["planted"], result["clean"]
    assert planted["named"] and planted["first_said"] == "zero_weights" and planted["said_by"] == "check"
    assert planted["all_said"][0] == "check: zero_weights"
    assert clean["seed"] == 0 and clean["first_said"] is None and clean["all_said"] == []
    assert result["ratio"] == 1.0 and result["clean_seeds_without_alarm"] == result["clean_seeds"] == 1
    assert clean["val_accuracy"] > planted["val_accuracy"]
    assert models.MODELS == known, "the plants are gone"


def test_an_unknown_fault_is_one_line():
    with pytest.raises(LinseedError, match="did you mean 'softmax twice'"):
        diagnosis.measure(faults=["softmax twise"], seeds=0, epochs=0.0)


@pytest.mark.parametrize("name", sorted(diagnosis.FAULTS))
def test_each_fault_changes_a_base_that_can_run_into_another_that_can(name, tmp_path):
    fault = diagnosis.FAULTS[name]
    assert fault.changes or fault.source
    assert fault.expected and set(fault.expected) <= set(CAUSES)
    config = diagnosis.BASES[fault.base]
    resolve(config)
    with mock.patch.dict(models.MODELS, plants.MODELS):
        resolve(changed(config, fault.changes))


def arrays(name, folder):
    section = plants.source(name, folder, **DIGITS)
    return sources.load(**section), sources.digits(**DIGITS)


def test_shuffled_labels_keep_the_images_and_the_classes(tmp_path):
    shuffled, digits = arrays("shuffled_labels", tmp_path)
    np.testing.assert_array_equal(shuffled.train.images, digits.train.images)
    np.testing.assert_array_equal(np.bincount(shuffled.train.labels), np.bincount(digits.train.labels))
    assert np.mean(shuffled.train.labels == digits.train.labels) < 0.2


def test_inverted_validation_is_of_images_that_train_does_not_have(tmp_path):
    inverted, digits = arrays("inverted_validation", tmp_path)
    assert len(inverted.train.labels) + len(inverted.val.labels) == len(digits.train.labels)
    whole = {image.tobytes(): label for image, label in zip(*digits.train, strict=True)}
    seen = {image.tobytes() for image in inverted.train.images}
    for image, label in zip(*inverted.val, strict=True):
        assert whole[(255 - image).tobytes()] == label
        assert (255 - image).tobytes() not in seen
