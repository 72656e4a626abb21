"""`metrics.jsonl`: whole lines, no step twice, and a warning where a record is missing."""

import json

import pytest

from linseed.trainer.run.metrics_log import MetricsLog, read_records

RECORD = {"step": 10, "epoch": 0.5, "train_loss": 1.25}


def test_records_come_back_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, resume_step=0, logged=0)
    log.write(RECORD)
    assert read_records(path) == [RECORD]  # before close: a kill loses no record
    log.close()


def test_resuming_drops_the_records_after_the_checkpoint_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15, 20)) + 'null\n[1]\n{"step": 2')
    log = MetricsLog(path, resume_step=10, logged=10)
    log.write({"step": 15})
    log.close()
    assert [record["step"] for record in read_records(path)] == [5, 10, 15]


@pytest.mark.parametrize(
    ("lines", "logged", "lost"),
    [
        ([5, 10], 10, False),
        ([5, 10], 5, False),  # the run stopped between two logs
        ([], 0, False),
        ([5, None], 5, False),  # torn by a kill, and written again
        ([5], 10, True),
        ([], 10, True),
        ([None, 10], 10, True),
        ([5, None], 10, True),
    ],
)
def test_a_missing_record_is_warned_of_unless_it_is_newer_than_the_checkpoint(tmp_path, caplog, lines, logged, lost):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step} if step else None) + "\n" for step in lines))
    MetricsLog(path, resume_step=12, logged=logged).close()
    messages = [record.getMessage() for record in caplog.records]
    assert [f"records of steps up to {logged} are lost" in line for line in messages] == [True] * lost
