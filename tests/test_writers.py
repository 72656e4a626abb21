"""Where the numbers go: whole lines, no step twice, the same figures on every kind of console."""

import io
import json
import os
import sys

import pytest

from linseed.scripts.cli.console import Console
from linseed.trainer.run import writers

RECORD = {
    "step": 10,
    "epoch": 0.5,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "lr": 0.01,
    "grad_norm": 2.0,
    "update_ratio": 0.001,
}


def test_records_come_back_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = writers.JsonLines(path, resume_step=0, logged=0)
    log.write(RECORD)
    assert writers.read_records(path) == [RECORD]  # before close: a kill loses nothing that was written
    log.close()


def test_resuming_drops_what_will_be_made_again_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15, 20)) + 'null\n[1]\n{"step": 2')
    log = writers.JsonLines(path, resume_step=10, logged=10)
    log.write({"step": 15})
    log.close()
    assert [record["step"] for record in writers.read_records(path)] == [5, 10, 15]


@pytest.mark.parametrize(
    ("lines", "logged", "lost"),
    [
        ([5, 10], 10, False),
        ([5, 10], 5, False),  # the run stopped between two logs
        ([], 0, False),
        ([5, None], 5, False),  # torn by a kill, and made again
        ([5], 10, True),
        ([], 10, True),
        ([None, 10], 10, True),
        ([5, None], 10, True),
    ],
)
def test_a_record_that_has_to_be_there_is_missed_and_no_other(tmp_path, caplog, lines, logged, lost):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step} if step else None) + "\n" for step in lines))
    writers.JsonLines(path, resume_step=12, logged=logged).close()
    said = [record.getMessage() for record in caplog.records]
    assert [f"records of steps up to {logged} are lost" in line for line in said] == [True] * lost


@pytest.mark.parametrize("terminal", [True, False])
def test_console_shows_figures_speed_and_time_left(terminal):
    stream = io.StringIO()
    writer = writers.for_console(Console(file=stream, force_terminal=terminal, width=200))
    writer.say("hello")
    writer.start(step=0, total_steps=30)
    writer.advance(1)
    writer.write(RECORD)
    writer.write(RECORD | {"step": 20, "images_per_second": 1234.0, "val_loss": 0.7, "val_accuracy": 0.625})
    writer.close()
    shown = stream.getvalue()
    for text in (
        "hello",
        "20/30" if not terminal else "20",
        "val loss 0.7000 acc 62.50%",
        "1,234 images/s",
        "0:00 left",
    ):
        assert text in shown, shown


def test_plain_output_is_whole_lines_without_escape_codes():
    stream = io.StringIO()
    writer = writers.for_console(Console(file=stream, force_terminal=False, width=40))
    writer.start(step=0, total_steps=30)
    writer.write(RECORD)
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_nobody_reads_goes_quiet(terminal, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console(file=stream, force_terminal=terminal)
        writer = writers.for_console(console)
        writer.say("hello")
        writer.start(step=0, total_steps=30)
        for record in (RECORD, RECORD | {"step": 20, "val_loss": 0.7, "val_accuracy": 0.625}):
            writer.advance(record["step"])
            writer.write(record)
        writer.close()
        assert console.quiet


def test_a_writer_may_be_closed_before_it_starts():
    writers.for_console(Console(file=io.StringIO(), force_terminal=True)).close()
    writers.Quiet().close()
