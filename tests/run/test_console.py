"""Writers: the same figures on every kind of console, and no trouble where nobody reads."""

import io
import os
import sys

import pytest

from linseed.scripts.cli.console import Console
from linseed.trainer.run.console import Quiet, for_console, summary

RECORD = {
    "step": 10,
    "epoch": 0.5,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "lr": 0.01,
    "grad_norm": 2.0,
    "update_ratio": 0.001,
}


@pytest.mark.parametrize("terminal", [True, False])
def test_console_shows_figures_speed_and_time_left(terminal):
    stream = io.StringIO()
    writer = for_console(Console(file=stream, force_terminal=terminal, width=200))
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


def test_what_always_guessing_one_class_would_reach_stands_beside_the_accuracy():
    stream = io.StringIO()
    writer = for_console(Console(file=stream, force_terminal=False, width=200))
    writer.start(step=0, total_steps=30)
    val = {"val_loss": 0.7, "val_accuracy": 0.98, "val_balanced_accuracy": 0.5, "val_majority_share": 0.98}
    writer.write(RECORD | val)
    assert "acc 98.00% (balanced 50.00%, majority 98.00%)" in stream.getvalue()


@pytest.mark.parametrize("test", [None, {"loss": 1.0, "accuracy": 0.75, "examples": 4}])
def test_the_summary_shows_the_splits_that_were_judged_and_a_dash_for_what_was_not_measured(test):
    val = {"loss": float("inf"), "accuracy": 0.5, "accuracy_interval": [0.25, 0.75], "majority_share": 0.625}
    stream = io.StringIO()
    Console(file=stream, width=80).print(summary({"val": {**val, "examples": 1234}, "test": test}))
    shown = stream.getvalue()
    assert "50.00 %" in shown and "1,234" in shown and "inf" in shown
    assert ("75.00 %" in shown) and ("test" in shown) == bool(test)
    assert "25.00 to 75.00 %" in shown and "62.50 %" in shown
    assert shown.count("–") == (2 if test is None else 6)


def test_plain_output_is_whole_lines_without_escape_codes():
    stream = io.StringIO()
    writer = for_console(Console(file=stream, force_terminal=False, width=40))
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
        writer = for_console(console)
        writer.say("hello")
        writer.start(step=0, total_steps=30)
        for record in (RECORD, RECORD | {"step": 20, "val_loss": 0.7, "val_accuracy": 0.625}):
            writer.advance(record["step"])
            writer.write(record)
        writer.close()
        assert console.quiet


def test_a_writer_may_be_closed_before_it_starts():
    for_console(Console(file=io.StringIO(), force_terminal=True)).close()
    Quiet().close()
