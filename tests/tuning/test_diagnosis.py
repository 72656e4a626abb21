"""The benchmark of planted faults, in miniature; and that what is planted is what its name says."""

from unittest import mock

import numpy as np
import pytest

from linseed import models
from linseed.scripts.bench import diagnosis, plants
from linseed.scripts.bench.diagnosis_cases import CLEAN, DATA, FAULTS, NETWORKS, base, with_changes
from linseed.trainer import experiment
from linseed.trainer.config.changes import changed
from linseed.trainer.data import sources
from linseed.trainer.data.splits import carve_validation
from linseed.trainer.errors import LinseedError
from linseed.trainer.experiment import Shared
from linseed.trainer.tuning.diagnosis.findings import CAUSES


def test_a_planted_fault_is_named_and_a_clean_run_is_silent(monkeypatch):
    """One step of the seven, one network, and a run of two epochs: the table's form, not its figures."""
    monkeypatch.setattr(diagnosis, "STEPS", ("check",))
    monkeypatch.setattr(diagnosis, "NETWORKS", ("mlp",))
    monkeypatch.setattr(diagnosis, "DATA", {"digits": DATA["digits"]})
    known = dict(models.MODELS)
    result = diagnosis.measure(faults=["zero weights"], clean=["mlp on digits"], epochs=2.0)
    (planted,), (clean,) = result["planted"], result["clean"]
    assert planted["named"] and planted["first_said"] == "zero_weights" and planted["said_by"] == "check"
    assert (planted["network"], planted["data"]) == ("mlp", "digits")
    assert clean["first_said"] is None and clean["all_said"] == []
    assert result["ratio"] == 1.0 and result["named"] == result["faults"] == result["cases"] == 1
    assert result["clean_runs_without_alarm"] == result["clean_runs"] == 1
    assert models.MODELS == known, "the plants are gone"


def test_wrong_labels_are_named_by_step_3_from_train_images_that_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "STEPS", ("lr",))
    source = plants.source("wrong_labels", tmp_path, of=DATA["patterns"])
    said = diagnosis.examine(changed(base("mlp", "patterns"), {"data.source": source}), tmp_path, shared=Shared())
    assert said.step == "lr" and said.findings[0]["cause"] == "wrong_labels"


@pytest.mark.parametrize("names", [{"faults": ["softmax twise"], "clean": []}, {"faults": [], "clean": ["mixpu"]}])
def test_an_unknown_case_is_one_line(names):
    with pytest.raises(LinseedError, match="did you mean '(softmax twice|mixup)'"):
        diagnosis.measure(**names, epochs=0.0)


def test_a_fault_that_one_network_hides_is_not_named():
    entries = [
        {"planted": "a", "network": network, "held_out": True, "named": named, "cpu_seconds": 1.0}
        for network, named in (("cnn", True), ("mlp", False))
    ]
    counts = diagnosis._counts(entries, [])
    assert (counts["faults"], counts["named"], counts["named_cases"]) == (1, 0, 1)
    assert (counts["held_out"], counts["named_of_held_out"]) == (1, 0)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_a_config_that_can_run(name, network, data):
    fault = FAULTS[name]
    assert fault.changes or fault.source or fault.model
    assert fault.expected and set(fault.expected) <= set(CAUSES)
    assert not fault.source or fault.source in plants.SOURCES
    config = base(network, data)
    with mock.patch.dict(models.MODELS, plants.MODELS):
        if fault.model:
            config = changed(config, {"model.name": f"{fault.model}_{network}"})
        with_changes(config, fault.changes)


@pytest.mark.parametrize("name", CLEAN)
def test_each_clean_run_is_a_config_that_can_run(name):
    clean = CLEAN[name]
    with_changes(base(clean.network, clean.data), clean.changes)


def test_there_are_enough_cases_of_every_kind():
    assert len(FAULTS) >= 24 and len(CLEAN) >= 40
    assert sum(fault.held_out for fault in FAULTS.values()) >= 8
    assert {source for fault in FAULTS.values() if (source := fault.source)} == set(plants.SOURCES)
    assert {model for fault in FAULTS.values() if (model := fault.model)} == set(plants.CHANGES)


@pytest.fixture(scope="module")
def original():
    source = sources.load(**DATA["digits"])
    return carve_validation(source, fraction=0.2, seed=0)


def planted(name, folder):
    source = sources.load(**plants.source(name, folder, of=DATA["digits"]))
    return source.train, source.val


def different(ours, others):
    return np.mean(ours.labels != others.labels)


LABELS = {
    "shuffled_labels": (0.9, 0.9),
    "wrong_labels": (0.3, 0),
    "next_labels": (0.3, 0),
    "renamed_validation": (0, 1),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_change_as_often_as_is_said_and_images_stay(name, original, tmp_path):
    for changed_split, split, share in zip(planted(name, tmp_path), original, LABELS[name], strict=True):
        np.testing.assert_array_equal(changed_split.images, split.images)
        assert different(changed_split, split) == pytest.approx(share, abs=0.05)


PIXELS = {"inverted_validation": lambda images: 255 - images, "dark_validation": lambda images: images // 4}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_of_validation_change_and_those_of_train_stay(name, original, tmp_path):
    train, val = planted(name, tmp_path)
    np.testing.assert_array_equal(train.images, original[0].images)
    np.testing.assert_array_equal(val.images, PIXELS[name](original[1].images))
    assert different(val, original[1]) == 0


def test_validation_holds_train_images_as_often_as_is_said(original, tmp_path):
    train, val = original
    copied, shared = planted("copied_validation", tmp_path)[1], planted("shared_validation", tmp_path)[1]
    np.testing.assert_array_equal(copied.images, train.images)
    third = len(val.labels) // 3
    np.testing.assert_array_equal(shared.images[:third], train.images[:third])
    np.testing.assert_array_equal(shared.images[third:], val.images[third:])


def test_a_sorted_split_has_one_class_in_validation(original, tmp_path):
    train, val = planted("sorted_split", tmp_path)
    assert set(val.labels) == {9} and set(train.labels) == set(range(10))
    assert len(train.labels) + len(val.labels) == sum(len(split.labels) for split in original)


def test_blank_images_are_of_all_classes(tmp_path):
    train, _ = planted("blank_images", tmp_path)
    blank = ~train.images.any(axis=(1, 2, 3))
    assert np.mean(blank) == pytest.approx(0.4, abs=0.05) and set(train.labels[blank]) == set(range(10))


@pytest.mark.parametrize(
    ("name", "share"), [("copied_validation", 1.0), ("shared_validation", 0.33), ("wrong_labels", 0)]
)
def test_a_run_says_how_much_of_validation_is_in_train(name, share, tmp_path):
    config = changed(base("mlp", "digits"), {"data.source": plants.source(name, tmp_path, of=DATA["digits"])})
    data = experiment.load_data(config, tmp_path, shared=Shared())
    assert data.leaked == pytest.approx(share, abs=0.01)
