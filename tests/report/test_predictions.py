"""Predictions of single examples: those of the logits, whatever the batches, and safe in their file."""

import numpy as np
import pytest
from scipy.special import log_softmax

from linseed.trainer.report import predictions as predictions_lib
from linseed.trainer.report.predictions import Collector
from linseed.trainer.step import calibration

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (50, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 50).astype(np.int32)


def collected(*, batch_size, bad=()):
    collector = Collector(examples=50)
    for start in range(0, 50, batch_size):
        logits, labels = LOGITS[start : start + batch_size], LABELS[start : start + batch_size]
        missing = batch_size - len(labels)
        mask = np.pad(~np.isin(np.arange(start, start + len(labels)), bad), (0, missing)).astype(np.float32)
        padded = np.pad(logits, ((0, missing), (0, 0)), constant_values=np.nan)
        brightness = np.full(batch_size, 7.0, np.float32)
        collector.add({"logits": padded, "label": np.pad(labels, (0, missing)), "mask": mask, "brightness": brightness})
    return collector


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_each_example_is_there_once_with_its_answer_and_its_loss(batch_size):
    collector = collected(batch_size=batch_size, bad=[3, 20])
    temperature = collector.temperature
    found = collector.predictions(temperature=temperature)
    np.testing.assert_array_equal(found.index, np.setdiff1d(np.arange(50), [3, 20]))
    logits, labels = LOGITS[found.index], LABELS[found.index]
    assert temperature == calibration.temperature(logits, labels) != 1.0
    order = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(np.stack([found.answer, found.second], 1), order[:, :2])
    logs = log_softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(found.loss, -logs[np.arange(48), labels], rtol=1e-5)
    np.testing.assert_allclose(found.confidence, np.exp(logs.max(axis=1)), rtol=1e-5)
    scaled = log_softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(found.scaled_confidence, np.exp(scaled.max(axis=1)), rtol=1e-4)
    assert found.scaled_loss.mean() <= found.loss.mean() + 1e-6


def test_a_given_temperature_is_the_one_that_is_applied():
    found = collected(batch_size=8).predictions(temperature=1.0)
    np.testing.assert_allclose(found.scaled_loss, found.loss, rtol=1e-5)


def test_of_too_many_logits_some_examples_are_scaled(monkeypatch):
    monkeypatch.setattr(predictions_lib, "MOST_LOGITS", 70)
    found = collected(batch_size=8).predictions(temperature=2.0)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found.scaled_loss)), np.arange(0, 50, 3))


def test_an_error_in_a_batch_waits_for_the_end():
    collector = collected(batch_size=8)
    collector.add({})
    for ask in (lambda: collector.temperature, lambda: collector.predictions(temperature=1.0)):
        with pytest.raises(KeyError):
            ask()


def test_a_file_gives_back_what_was_written(tmp_path):
    found = collected(batch_size=8).predictions(temperature=2.5)
    predictions_lib.write(tmp_path / "p", {"val": found, "test": found._replace(width=found.label)}, temperature=2.5)
    splits, temperature = predictions_lib.read(tmp_path / "p")
    assert temperature == 2.5 and set(splits) == {"val", "test"}
    for key, array in found._asdict().items():
        np.testing.assert_array_equal(splits["val"]._asdict()[key], array)
    np.testing.assert_array_equal(splits["test"].width, found.label)
    assert predictions_lib.read(tmp_path / "absent")[0] == {}
