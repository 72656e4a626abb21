"""Stopped at any moment and run again, a run ends as the one that nobody stopped; and signals ask it to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import ROOT, SHARED, Trip, records, run, tiny

from linseed.trainer import evaluation
from linseed.trainer.experiment import Shared
from linseed.trainer.runtime import signals
from linseed.trainer.step.evaluator import Evaluator


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return run(tiny(), workdir, shared=SHARED), workdir


def stopped(config, workdir, poll, **options):
    with pytest.raises(signals.Stopped) as caught:
        run(config, workdir, stop=Trip(poll), shared=SHARED, **options)
    return caught.value


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def ours(caplog):
    """The warnings of this project. Orbax has its own, such as of a slow machine."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("linseed")]


# The log closes a window every 3 steps, an evaluation every 4: before the first step; in a window; where one closed at
# a log, at an evaluation; twice in one window; after the last step; at every step.
@pytest.mark.parametrize("polls", [(1,), (3,), (4,), (5,), (8, 2), (6, 1, 2, 1), (25,), (2,) * 24])
def test_a_stopped_run_ends_as_if_nothing_happened(straight, tmp_path, polls, caplog):
    result, workdir = straight
    reached = 0
    for poll in polls:
        said = stopped(tiny(), tmp_path, poll)
        reached = min(reached + poll - 1, 24)
        assert max(steps_saved(tmp_path), default=0) == reached  # of that very step
        assert said.status == 143
        assert (f"after step {reached}, which is saved" if reached else "before the first step") in str(said)
        assert not (tmp_path / "result.json").exists()
        assert not (tmp_path / "test_openings.jsonl").exists()
    again = run(tiny(), tmp_path, shared=SHARED)
    for key in ("params_sha256", "best_params_sha256", "best_step", "val", "test", "stop_reason", "config_sha256"):
        assert again[key] == result[key], key
    assert records(tmp_path) == records(workdir)
    assert steps_saved(tmp_path) == steps_saved(workdir)
    assert ours(caplog) == []  # nothing is lost


def test_a_stop_in_the_middle_of_many_steps_a_call(tmp_path):
    config = tiny(**{"steps_per_call": 2})
    shared = Shared()
    whole = run(config, tmp_path / "whole", shared=shared)
    for poll in (2, 4):
        with pytest.raises(signals.Stopped):
            run(config, tmp_path / "parts", stop=Trip(poll), shared=shared)
    assert run(config, tmp_path / "parts", shared=shared)["params_sha256"] == whole["params_sha256"]
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_stop_while_an_evaluation_is_under_way_keeps_the_evaluation(straight, tmp_path, monkeypatch):
    start, asked = Evaluator.start, []

    def interrupted(self, weights, split):
        asked.append(signal.SIGUSR1)
        return start(self, weights, split)

    with monkeypatch.context() as patched, pytest.raises(signals.Stopped, match="SIGUSR1 after step 4") as caught:
        patched.setattr(Evaluator, "start", interrupted)
        run(tiny(), tmp_path, stop=lambda: asked[0] if asked else 0, shared=SHARED)
    assert caught.value.status == 138
    assert [record["step"] for record in records(tmp_path) if "val_accuracy" in record] == [4]
    assert run(tiny(), tmp_path, shared=SHARED)["params_sha256"] == straight[0]["params_sha256"]
    assert records(tmp_path) == records(straight[1])


def test_a_stop_is_no_evaluation(straight, tmp_path):
    """It does not push out the checkpoints of evaluations, and is none of those that are averaged or called best."""
    config = tiny(**{"checkpoint.keep_latest": 2})
    stopped(config, tmp_path, 11)  # after step 10
    assert steps_saved(tmp_path) == [4, 8, 10]
    best = max((r["val_accuracy"], r["step"]) for r in records(tmp_path) if "val_accuracy" in r)[1]
    assert evaluation.evaluate_checkpoint(tmp_path, which="best", split="val")["step"] == best
    assert evaluation.evaluate_checkpoint(tmp_path, which="latest", split="val")["step"] == 10
    averaged = evaluation.restore_weights(config, tmp_path, which="snapshots")[1]
    assert [step for step, _ in averaged] == [4, 8]


def test_early_stopping_counts_across_a_stop(tmp_path):
    config = tiny(**{"early_stopping.patience": 3, "early_stopping.min_delta": 1.0})
    whole = run(config, tmp_path / "whole", shared=SHARED)
    for poll in (7, 4, 5):
        stopped(config, tmp_path / "parts", poll)
    again = run(config, tmp_path / "parts", shared=SHARED)
    assert (again["steps"], again["stop_reason"]) == (whole["steps"], whole["stop_reason"]) and whole["steps"] == 16
    assert again["params_sha256"] == whole["params_sha256"]


def test_another_log_interval_after_a_stop_loses_no_step_that_is_left(straight, tmp_path, caplog):
    stopped(tiny(), tmp_path, 3)  # after step 2
    stopped(tiny(log_every_steps=2), tmp_path, 2, on_config_change="accept")  # after step 3
    found = run(tiny(log_every_steps=2), tmp_path)
    assert ours(caplog) == []
    assert found["steps"] == 24
    assert [record["step"] for record in records(tmp_path)] == list(range(4, 25, 2))


@pytest.fixture
def told(monkeypatch):
    """Signals as they are for a command in the foreground, and what is told of them."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.SIGNALS}
    yield []
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_sets_the_flag_and_the_old_handlers_come_back(told, number):
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with signals.on_signals(told.append) as stop:
        assert stop() == 0
        os.kill(os.getpid(), number)
        wait_until(stop)
        assert stop() == number
    assert told == [f"{number.name}: stopping after the step under way; a second signal exits at once"]
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_was_ignored_stays_ignored(told):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.on_signals(told.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(stop)
        assert stop() == signal.SIGUSR1
    assert len(told) == 1


def test_a_signal_that_nobody_is_told_of_is_heard_and_so_is_the_second(told, monkeypatch):
    def tell(line):
        told.append(line)
        raise BrokenPipeError

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with signals.on_signals(tell) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: told)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: ended)
        assert (stop(), ended) == (signal.SIGTERM, [130])


def test_a_second_signal_ends_the_process_while_the_main_thread_is_deep_in_c():
    """As in a compiler: no handler of Python's would run there."""
    code = """
import ctypes, sys
from linseed.trainer.runtime import signals
def tell(line):
    print(line, flush=True)
with signals.on_signals(tell):
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).poll(None, 0, 60_000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("SIGTERM: stopping")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 138
    process.stdout.close()


def test_sigterm_and_the_same_command(tmp_path):
    """Through the real process, asked at its first logged step: a line, status 143, and the run goes on."""
    command = [sys.executable, "-m", "scripts.train", "--config=configs/digits.py:quick", f"--workdir={tmp_path}"]
    command += ["--config.model.widths=(4,)", "--config.log_every_steps=1", "--config.horizon.epochs=40.0"]
    command += ["--config.convolution=xla"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    log = Path(tmp_path / "metrics.jsonl")
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143, error
    lines = error.strip().splitlines()
    assert lines[0].startswith("SIGTERM: stopping") and len(lines) == 2, error
    (step,) = [int(word) for word in lines[1].replace(",", "").split() if word.isdigit()]
    assert lines[1].endswith("which is saved; run the same command again to go on")
    assert step in steps_saved(tmp_path)
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step


def test_the_library_installs_no_handler():
    code = (
        "import signal; numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1];"
        "before = [signal.getsignal(n) for n in numbers];"
        "import linseed.trainer.train, linseed.trainer.tuning.tune;"
        "assert before == [signal.getsignal(n) for n in numbers]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
