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


@pytest.mark.parametrize("change", [("1.25", "1.35"), ("epoch", "epodh"), ("{", "[")])
def test_a_changed_line_is_named_and_left_out(tmp_path, caplog, change):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, resume_step=0, logged=0)
    for step in (10, 20, 30):
        log.write({**RECORD, "step": step})
    log.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace(*change), lines[2]]))
    assert [record["step"] for record in read_records(path)] == [10, 30]
    (said,) = caplog.messages
    assert f"{path} is damaged: 1 of its 3 records are left out" in said
    path.write_text("".join([*lines[:2], lines[2][:-20]]))  # a kill did this
    assert [record["step"] for record in read_records(path)] == [10, 20] and len(caplog.messages) == 1


def test_records_without_checksums_are_of_an_earlier_version(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    assert read_records(path) == [RECORD] and not caplog.messages
    MetricsLog(path, resume_step=10, logged=10).close()
    assert read_records(path) == [RECORD] and "crc32" in path.read_text()


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
