"""The whole way of the data: config to result, resumed, stopped, refused."""

import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import ROOT, SHARED, Killer, Stop, records, run, tiny

from linseed.trainer import evaluation, train
from linseed.trainer.data import batching, sources
from linseed.trainer.errors import CheckpointError, ConfigError, DataError, NonFiniteError, WorkdirError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.report import write as report
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import Checkpoints
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import MetricsLog, read_records
from linseed.trainer.runtime.data_parallel import DataParallel
from linseed.trainer.step import losses
from linseed.trainer.step.evaluator import Evaluator


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return run(tiny(), workdir), workdir


def test_a_run_leaves_a_complete_result(straight):
    result, workdir = straight
    assert workdir_lib.read_result(workdir) == result
    keys = "best_step steps stop_reason val test params_sha256 best_params_sha256 seconds images_per_second devices"
    assert set(keys.split()) | {"versions", "config_sha256"} <= set(result)
    assert result["steps"] == 24 and result["stop_reason"] == "horizon reached"
    assert (result["val"]["examples"], result["test"]["examples"]) == (32, 160)
    assert result["test"]["accuracy"] > 0.5  # chance is 0.25
    assert len(result["devices"]) == 4 and result["seconds"] > 0 and result["images_per_second"] > 0
    assert "<svg" in (workdir / "report.html").read_text()


def test_metrics_hold_every_logged_step_once_and_in_order(straight):
    found = records(straight[1])
    steps = [record["step"] for record in found]
    assert steps == sorted({*range(3, 25, 3), *range(4, 25, 4)})
    evaluated = [record["step"] for record in found if "val_accuracy" in record]
    assert evaluated == [4, 8, 12, 16, 20, 24]
    expected = {"step", "epoch", "train_loss", "train_accuracy", "lr", "grad_norm", "update_ratio"}
    assert all(expected <= set(record) for record in found)
    assert found[-1]["train_loss"] < found[0]["train_loss"]


def test_the_compilation_of_an_evaluation_is_no_training_time(tmp_path, monkeypatch):
    late, start = [0.0], Evaluator.start

    def compiles(evaluator, weights, split):
        late[0] = 1000.0
        return start(evaluator, weights, split)

    monkeypatch.setattr(Evaluator, "start", compiles)
    monkeypatch.setattr(train.time, "monotonic", lambda: time.perf_counter() + late[0])
    run(tiny(), tmp_path, shared=SHARED)
    found = {record["step"]: record for record in read_records(tmp_path / "metrics.jsonl")}
    assert "val_accuracy" in found[4] and min(found[step]["images_per_second"] for step in (4, 6)) > 1


def test_best_is_the_best_of_the_metrics_and_both_checkpoints_survive(straight):
    result, workdir = straight
    best = max((record["val_accuracy"], record["step"]) for record in records(workdir) if "val_accuracy" in record)
    assert (result["val"]["accuracy"], result["best_step"]) == best
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == sorted({result["best_step"], 24})


def test_a_finished_run_is_not_run_again(straight):
    result, workdir = straight
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "lock"}
    assert run(tiny(), workdir) == result
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "lock"}
    assert len((workdir / "test_openings.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("kills", [(2,), (4, 5, 13), (24,), (9, 23)])
def test_a_killed_run_ends_as_if_nothing_happened(straight, tmp_path, kills):
    result, workdir = straight
    for step in kills:
        with pytest.raises(Stop):
            run(tiny(), tmp_path, writer=Killer(step))
    again = run(tiny(), tmp_path)
    for key in ("params_sha256", "best_params_sha256", "best_step", "val", "test", "stop_reason", "config_sha256"):
        assert again[key] == result[key], key
    assert records(tmp_path) == records(workdir)


def test_images_on_the_host_and_on_the_devices_train_alike(straight, tmp_path):
    result, workdir = straight
    again = run(tiny(**{"data.placement": "host"}), tmp_path)
    assert again["params_sha256"] == result["params_sha256"]
    assert records(tmp_path) == records(workdir)


def test_how_many_steps_are_one_call_changes_nothing_but_rounding(straight, tmp_path):
    """7 steps are never left before a window ends. XLA compiles the body of a loop in its own way."""
    for steps in (3, 7):
        config, workdir = tiny(**{"steps_per_call": steps}), tmp_path / str(steps)
        with pytest.raises(Stop):
            run(config, workdir, writer=Killer(21))
        run(config, workdir)
        for found, expected in zip(records(workdir), records(straight[1]), strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert records(tmp_path / "3") == records(tmp_path / "7")


def test_kill_9_and_the_same_command(tmp_path):
    """Through the real process: SIGKILL once the first checkpoint is there, then the same command again."""
    command = [sys.executable, "-m", "scripts.train", "--config=configs/digits.py:quick"]
    overrides = ["--config.model.widths=(4,)", "--config.horizon.epochs=4.0", "--config.log_every_steps=1"]
    overrides += ["--config.convolution=xla"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run([*command, f"--workdir={straight}", *overrides], cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen([*command, f"--workdir={killed}", *overrides], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((killed / "checkpoints").glob("[0-9]*/commit_success.txt")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    done = subprocess.run([*command, f"--workdir={killed}", *overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    a, b = (workdir_lib.read_result(workdir) for workdir in (straight, killed))
    assert a["params_sha256"] == b["params_sha256"]
    assert records(straight) == records(killed)


def test_a_run_whose_output_nobody_reads_is_finished(tmp_path):
    """As after `| head`, or when Ctrl-C ended the `tee` that its output went to."""
    command = [sys.executable, "-m", "scripts.train", "--config=configs/digits.py:quick", f"--workdir={tmp_path}"]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [*command, "--config.model.name=linear"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (process.communicate(timeout=120)[1], process.returncode) == ("", 0)
    assert workdir_lib.read_result(tmp_path)["stop_reason"] == "horizon reached"


class Breaks(Quiet):
    """A writer that fails at the record of step `step`."""

    def __init__(self, step):
        self.step = step

    def write(self, record):
        if record["step"] == self.step:
            raise Stop


def test_a_writer_that_breaks_costs_no_checkpoint(tmp_path):
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Breaks(8))
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == 8


def test_records_are_on_the_disk_before_the_checkpoint_that_stands_on_them(tmp_path, monkeypatch):
    events = []
    sync, save = MetricsLog.sync, Checkpoints.save

    def synced(self):
        sync(self)
        events.append(("synced", read_records(tmp_path / "metrics.jsonl")[-1]["step"]))

    def saved(self, state, *, step, **about):
        events.append(("saved", step))
        save(self, state, step=step, **about)

    monkeypatch.setattr(MetricsLog, "sync", synced)
    monkeypatch.setattr(Checkpoints, "save", saved)
    run(tiny(), tmp_path, shared=SHARED)
    assert events == [(what, step) for step in range(4, 25, 4) for what in ("synced", "saved")]


def test_early_stopping_counts_across_a_resume_and_says_why(tmp_path):
    """No improvement is large enough, so that the first evaluation stays the mark to beat."""
    config = tiny(**{"early_stopping.patience": 3, "early_stopping.min_delta": 1.0})
    straight = run(config, tmp_path / "straight")
    assert straight["steps"] == 16  # evaluations at 4 (first), 8, 12, 16: three without improvement
    assert straight["stop_reason"] == "early stopping: 3 evaluations without a better val accuracy"
    for step in (10, 14):
        with pytest.raises(Stop):
            run(config, tmp_path / "killed", writer=Killer(step))
    assert run(config, tmp_path / "killed")["params_sha256"] == straight["params_sha256"]


def test_test_is_opened_once_after_the_last_step_with_the_best_weights(tmp_path, monkeypatch):
    """Counted where the pixels are read, in the source, so that no way past the seal goes unseen."""
    reads = []
    load = sources.load

    def watched(**kwargs):
        source = load(**kwargs)

        def open_test():
            reads.append(records(tmp_path)[-1]["step"])
            return source.open_test()

        return dataclasses.replace(source, open_test=open_test)

    monkeypatch.setattr(sources, "load", watched)
    result = run(tiny(), tmp_path)
    assert reads == [24]
    (opening,) = map(json.loads, (tmp_path / "test_openings.jsonl").read_text().splitlines())
    assert (opening["by"], opening["which"], opening["step"]) == ("train", "best", result["best_step"])


def test_one_device_and_four_agree(straight, tmp_path, monkeypatch):
    """Dropout draws per device, so it is off; augmentation draws per image, so it stays on."""
    config = tiny(**{"model.dropout": 0.0, "horizon.epochs": 2.0})
    run(config, tmp_path / "four")
    devices = train.jax.devices
    monkeypatch.setattr(train.jax, "devices", lambda: devices()[:1])
    run(config, tmp_path / "one")
    assert run(config, tmp_path / "one")["devices"] == ["cpu"]
    for four, one in zip(records(tmp_path / "four"), records(tmp_path / "one"), strict=True):
        assert set(four) == set(one)
        for key in {"train_loss", "val_loss"} & set(one):
            assert four[key] == pytest.approx(one[key], rel=1e-4)


def test_another_config_is_refused_unless_told_to(straight, tmp_path):
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Killer(9))
    longer = tiny(**{"horizon.epochs": 7.0})
    with pytest.raises(WorkdirError, match=r"horizon.epochs: 6.0 -> 7.0"):
        run(longer, tmp_path)
    killer = Killer(-1)
    assert run(longer, tmp_path, writer=killer, on_config_change="accept")["steps"] == 28
    assert "resuming after step 4" in killer.said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.widths": (4, 12)}, "is of another model or optimizer .*use a new --workdir"),
        ({"data.split_seed": 1}, "train and validation splits changed since this run started"),
        ({"data.val_fraction": 0.3}, "train and validation splits changed"),
        ({"data.source.seed": 7}, "train and validation splits changed"),
    ],
)
def test_a_change_that_cannot_be_accepted_leaves_the_run_as_it_was(straight, tmp_path, change, says):
    """Other splits would train on what the first part was measured on; the first command then still goes on."""
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Killer(9))
    with pytest.raises((CheckpointError, DataError), match=says):
        run(tiny(**change), tmp_path, on_config_change="accept")
    assert run(tiny(), tmp_path)["params_sha256"] == straight[0]["params_sha256"]


def test_data_that_changed_under_a_run_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Killer(9), shared=SHARED)
    load = sources.load

    def changed(**kwargs):
        source = load(**kwargs)
        source.train.images[3] ^= 1
        return source

    monkeypatch.setattr(sources, "load", changed)
    with pytest.raises(DataError, match="changed since this run started; restore the data"):
        run(tiny(), tmp_path)
    with pytest.raises(DataError, match="changed since this run started; restore the data"):
        evaluation.evaluate_checkpoint(tmp_path, which="best", split="val")


def test_a_kill_between_the_last_step_and_the_result_loses_nothing(straight, tmp_path, monkeypatch):
    def kill(*_, **__):
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(evaluation.result_lib, "assemble", kill)
        with pytest.raises(Stop):
            run(tiny(), tmp_path, shared=SHARED)
    with monkeypatch.context() as patched:
        patched.setattr(report, "recount", kill)
        with pytest.raises(Stop):
            run(tiny(), tmp_path, shared=SHARED)
    assert not (tmp_path / "report.html").exists()
    result = run(tiny(), tmp_path, shared=SHARED)
    assert result["params_sha256"] == straight[0]["params_sha256"] and result["test"] == straight[0]["test"]
    assert result["test_openings"] == 2  # the truth: it was opened for the attempt that died, too
    assert (tmp_path / "report.html").exists()


def test_a_second_run_in_a_workdir_in_use_is_refused(tmp_path):
    with workdir_lib.lock(tmp_path), pytest.raises(WorkdirError, match="another run is using"):
        run(tiny(), tmp_path)


def test_the_loop_gives_up_the_old_state_and_moves_nothing_behind_our_back(tmp_path, monkeypatch):
    donations = []
    compile_ = DataParallel.compile

    def watched(self, fn, *, donate, **kwargs):
        donations.append((fn.__name__, donate))
        return compile_(self, fn, donate=donate, **kwargs)

    monkeypatch.setattr(DataParallel, "compile", watched)
    monkeypatch.setattr(DataParallel, "shard", lambda self, batch: {k: self._cut(v) for k, v in batch.items()})
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tiny(), tmp_path)
    assert sorted(donations) == [
        ("eval_step", False),
        ("probe_step", False),
        ("train_step", True),
        ("train_steps", True),
    ]


def test_validation_and_test_are_measured_without_label_smoothing(tmp_path, monkeypatch):
    seen = []
    make_loss = losses.make_loss
    monkeypatch.setattr(losses, "make_loss", lambda name, **kwargs: seen.append(kwargs) or make_loss(name, **kwargs))
    run(tiny(**{"horizon.epochs": 1.0, "schedule.warmup_epochs": 0.0}), tmp_path)
    assert seen == [{"label_smoothing": 0.1}, {"label_smoothing": 0.0}]


@pytest.fixture(scope="module")
def poisoned():
    return Shared()


@pytest.mark.parametrize(
    ("bad_step", "window", "kept"),
    [
        (2, "steps 1 to 3", "there is no checkpoint yet"),
        (4, "steps 4 to 4", "there is no checkpoint yet"),  # the window that an evaluation closes
        (8, "steps 7 to 8", "the checkpoint of step 4 is good"),
        (9, "steps 9 to 9", "the checkpoint of step 8 is good"),
    ],
)
def test_a_non_finite_loss_stops_the_run_and_names_the_window(tmp_path, monkeypatch, poisoned, bad_step, window, kept):
    """Places that no example has stand for whatever makes a loss NaN."""
    places, make_loss = batching.places, losses.make_loss

    def poisoned_places(step, **kwargs):
        batch = places(step, **kwargs)
        return {**batch, "index": np.full_like(batch["index"], 2**30)} if step + 1 == bad_step else batch

    def poisoned_loss(name, **kwargs):
        loss = make_loss(name, **kwargs)
        return lambda logits, labels: jnp.where(labels < 0, jnp.nan, loss(logits, labels))

    monkeypatch.setattr(batching, "places", poisoned_places)
    monkeypatch.setattr(losses, "make_loss", poisoned_loss)
    with pytest.raises(NonFiniteError, match=f"of step {bad_step} is not finite .logged window: {window}.; {kept}"):
        run(tiny(), tmp_path, shared=poisoned)
    assert not (tmp_path / "result.json").exists()
    assert max([record["step"] for record in records(tmp_path)], default=0) < bad_step
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved, default=0) < bad_step


def test_parameters_that_blew_up_are_neither_saved_nor_called_a_result(tmp_path):
    """One step, whose loss and gradient are finite and whose parameters are not of this world."""
    config = tiny(**{"optimizer.lr": 1e30, "horizon.epochs": 0.25, "schedule.warmup_epochs": 0.0})
    with pytest.raises(NonFiniteError, match="there is no checkpoint yet. .*lower config.optimizer.lr"):
        run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_damage_in_the_latest_checkpoint_costs_time_but_not_the_result(straight, tmp_path, caplog):
    config = tiny(**{"checkpoint.keep_latest": 3})
    with pytest.raises(Stop):
        run(config, tmp_path, writer=Killer(21))
    for path in (tmp_path / "checkpoints" / "16" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        again = run(config, tmp_path)
    assert "checkpoint of step 16 is damaged" in caplog.text
    assert again["params_sha256"] == straight[0]["params_sha256"]
    assert records(tmp_path) == records(straight[1])


@pytest.mark.parametrize("backend", ["shard_map"])
def test_the_other_backend_gives_the_same_run(straight, tmp_path, backend):
    result = run(tiny(**{"parallel.backend": backend}), tmp_path)
    assert result["best_step"] == straight[0]["best_step"]
    assert result["test"]["loss"] == pytest.approx(straight[0]["test"]["loss"], rel=1e-4)


def test_evaluation_of_a_workdir_repeats_the_result_and_records_openings(straight):
    result, workdir = straight
    best = evaluation.evaluate_checkpoint(workdir, which="best", split="val")
    assert {key: best[key] for key in result["val"]} == result["val"]
    assert best["step"] == result["best_step"] and best["test_openings"] == 1
    test = evaluation.evaluate_checkpoint(workdir, which="best", split="test")
    assert test["loss"] == result["test"]["loss"] and test["test_openings"] == 2
    latest, ema = (evaluation.evaluate_checkpoint(workdir, which=which, split="val") for which in ("latest", "ema"))
    assert latest["step"] == ema["step"] == 24 and latest["loss"] != ema["loss"]
    assert ema["loss"] == records(workdir)[-1]["val_loss"]


def test_an_average_that_was_not_kept_cannot_be_judged(tmp_path):
    run(tiny(**{"ema_decay": 0.0, "horizon.epochs": 2.0}), tmp_path)
    with pytest.raises(ConfigError, match="kept no moving average .*use --which=best or latest"):
        evaluation.evaluate_checkpoint(tmp_path, which="ema", split="val")


def test_evaluation_before_the_first_checkpoint_is_one_line(tmp_path):
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Killer(1))
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train first"):
        evaluation.evaluate_checkpoint(tmp_path, which="best", split="val")


@pytest.mark.parametrize("key", ["data.batch_size", "eval.batch_size"])
def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=f"config.{key}=30 does not divide over 4 devices; use 28 or 32"):
        run(tiny(**{key: 30}), tmp_path)


def test_going_on_with_another_number_of_devices_is_said(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        run(tiny(), tmp_path, writer=Killer(9), shared=SHARED)
    devices = train.jax.devices
    monkeypatch.setattr(train.jax, "devices", lambda: devices()[:2])
    killer = Killer(-1)
    assert run(tiny(), tmp_path, writer=killer)["steps"] == 24
    assert any("began on 4 devices and goes on with 2" in line for line in killer.said)


def test_a_model_that_does_not_fit_the_images_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="config.model 'cnn' does not fit 8x8x3 images: .*fewer widths"):
        run(tiny(**{"model.widths": (4, 4, 4, 4, 4)}), tmp_path)


def constant_rate(**changes):
    """A run whose length, rate and decay are values, not parts of a compiled step."""
    config = tiny(**{"data.augment": "flip_lr(0.5)", "log_every_steps": 4, **changes})
    with config.unlocked():
        config.schedule = dict(name="constant", warmup_steps=0)
    return config


def test_runs_that_differ_in_rate_decay_seed_or_length_share_data_and_compiled_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sources.SOURCES, "synthetic", _counted(sources.SOURCES["synthetic"], calls))
    shared = Shared()
    variants = [{}, {"optimizer.lr": 0.002}, {"optimizer.weight_decay": 0.3}, {"seed": 1}, {"horizon.epochs": 3.0}]
    experiments = [build(constant_rate(**change), tmp_path, shared=shared) for change in variants]
    assert len({id(e.train_step) for e in experiments}) == len({id(e.train.images) for e in experiments}) == 1
    assert len(calls) == 1
    for change in ({"model.widths": (4, 9)}, {"data.augment": ""}, {"data.normalize": "none"}):
        assert build(constant_rate(**change), tmp_path, shared=shared).train_step is not experiments[0].train_step
    # and end as runs that share nothing
    for change in variants:
        alone = run(constant_rate(**change), tmp_path / f"alone{change}")
        together = run(constant_rate(**change), tmp_path / f"together{change}", shared=shared)
        assert alone["params_sha256"] == together["params_sha256"]


def _counted(function, calls):
    @functools.wraps(function)
    def counted(**kwargs):
        calls.append(kwargs)
        return function(**kwargs)

    return counted


def test_a_run_at_a_constant_rate_can_be_lengthened(tmp_path):
    whole = run(constant_rate(), tmp_path / "whole")
    for epochs in (2.0, 4.0, 6.0):
        longer = run(constant_rate(**{"horizon.epochs": epochs}), tmp_path / "parts", on_config_change="accept")
    assert longer["params_sha256"] == whole["params_sha256"]
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_rate_and_a_decay_changed_on_the_way_are_those_that_act(tmp_path):
    run(constant_rate(**{"horizon.epochs": 2.0}), tmp_path)
    run(constant_rate(**{"optimizer.lr": 1e-9}), tmp_path, on_config_change="accept")
    found = records(tmp_path)
    assert [record["lr"] for record in found if record["step"] > 8] == [pytest.approx(1e-9)] * 4
    assert found[-1]["update_ratio"] < 1e-6 < found[0]["update_ratio"]


def test_a_run_may_leave_the_test_split_sealed_and_open_it_later(straight, tmp_path):
    sealed = run(tiny(), tmp_path, judge=("val",))
    assert sealed["test"] is None and sealed["test_openings"] == 0
    assert not (tmp_path / "test_openings.jsonl").exists() and "<svg" in (tmp_path / "report.html").read_text()
    opened = run(tiny(), tmp_path)
    assert opened["test"] == straight[0]["test"] and opened["test_openings"] == 1
