"""Two runs are the same or they are not, and the first difference is named."""

import json
import shutil

import numpy as np
import pytest

from linseed.scripts.bench.cases import tiny
from linseed.trainer import train
from linseed.trainer.errors import WorkdirError
from linseed.trainer.experiment import Shared
from linseed.trainer.run import compare
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a seed and one of another."""
    folder, shared = tmp_path_factory.mktemp("runs"), Shared()
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        config = tiny()
        config.seed = seed
        train.train_and_evaluate(config, folder / name, writer=Quiet(), on_config_change="refuse", shared=shared)
    return folder


def test_a_run_and_the_same_run_again_do_not_differ(runs):
    assert compare.differences(runs / "first", runs / "again") == []


def test_a_run_of_another_seed_differs_in_hash_record_and_a_named_array(runs):
    found = compare.differences(runs / "first", runs / "other")
    assert found[0].startswith("params_sha256: ")
    assert any(line.startswith("metrics.jsonl at step 2, train_loss: ") for line in found)
    assert "first difference in the last checkpoints: " in found[-1] and ", by at most " in found[-1]


def test_one_record_that_differs_is_found_and_the_clock_is_not_looked_at(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "copy")
    path = tmp_path / "copy" / "metrics.jsonl"
    records = read_records(path)
    records[4]["images_per_second"] = 1.0
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert compare.differences(runs / "first", tmp_path / "copy") == []
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:-1]))
    (line,) = compare.differences(runs / "first", tmp_path / "copy")
    assert "metrics.jsonl at step 24" in line and "absent" in line


def test_a_run_that_is_not_finished_cannot_be_compared(runs, tmp_path):
    with pytest.raises(WorkdirError, match="holds no finished run"):
        compare.differences(runs / "first", tmp_path)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"a": np.array([1.0, 2.5], np.float32)}, "a, by at most 0.5"),
        ({"a": np.array([1.0, 2.0])}, "a, float32 (2,) -> float64 (2,)"),
        ({}, "a is in one of them only"),
        ({"a": np.array([1.0, 2.0], np.float32)}, ""),
    ],
)
def test_the_first_array_that_differs_is_named_with_by_how_much(other, says):
    assert compare.first_difference({"a": np.array([1.0, 2.0], np.float32)}, other).endswith(says)
