"""Benchmarks, at a size of seconds: each ends with a ratio of what it compares, and compares what it says."""

import json
import os
import types

import numpy as np
import pytest
from support import forked

from linseed.configs import cifar10_speedrun, imagenet_resnet50
from linseed.scripts.bench import (
    augment,
    cases,
    checkpoint,
    child,
    devices,
    grid,
    loop,
    resnet50,
    speedrun,
    startup,
    turns,
)
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import sources, splits
from linseed.trainer.errors import LinseedError


@pytest.fixture
def digits():
    config = cases.synthetic(resolve(cases.digits.get_config()), examples=400, image_size=8)
    config.model = dict(name="linear")
    return config


@pytest.fixture
def record(digits):
    """The speedrun's config, of a network that compiles fast."""
    config = cases.synthetic(resolve(cifar10_speedrun.get_config("quick")), examples=400, image_size=8)
    config.model, config.optimizer, config.data.augment = digits.model, digits.optimizer, ""
    config.data_init = dict(name="none")
    return config


@pytest.mark.parametrize("case", cases.CASES)
def test_the_evaluation_beside_a_checkpoint_is_one_full_batch(case):
    config = checkpoint.evaluated_at_once(cases.CASES[case]())
    source = sources.load(**config.data.source)
    _, val = splits.carve_validation(source, fraction=config.data.val_fraction, seed=config.data.split_seed)
    assert len(val.labels) == config.eval.batch_size


def test_checkpoints_are_measured(digits):
    found = checkpoint.measure(config=digits, steps=8, every=4, rounds=1)
    assert found["ratio"] > 0 and found["steps_per_second"] > 0
    with pytest.raises(LinseedError, match="raise --steps"):
        checkpoint.measure(config=digits, steps=8, every=8, rounds=1)


def test_the_loop_is_measured(digits):
    found = loop.measure(config=digits, steps=4, rounds=1)
    assert found["ratio"] > 0 and found["bare_images_per_second"] > 0


def test_a_batch_over_devices_is_measured(digits, monkeypatch):
    here = lambda function, *arguments, devices, **kwargs: function(*arguments, **kwargs)  # noqa: E731
    monkeypatch.setattr(devices, "COUNTS", (1, 4))
    monkeypatch.setattr(devices, "in_child", here)
    found = devices.measure(config=digits, turn=1, rounds=1)
    assert found["ratio"] == found["backends"]["pmap"]["times_faster"]["4"] > 0


def test_steps_of_resnet50_are_measured(digits, monkeypatch):
    """Of another network, which compiles fast."""
    monkeypatch.setattr(imagenet_resnet50, "get_config", lambda: digits)
    found = resnet50.measure(batch=8, image_size=8, turn=2, rounds=1)
    assert found["images_per_second"] > 0 and found["ratio"] is None  # of a CPU no peak is known


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12),
        ("cpu", None),
    ],
)
def test_a_device_has_the_peak_of_its_own_kind(kind, peak):
    assert resnet50.peak_flops(kind) == peak


@pytest.mark.parametrize(("within", "seeds"), [(0.0, 1), (1e9, 2)])
def test_the_speedrun_makes_the_runs_that_fit_and_one_in_any_case(record, within, seeds, monkeypatch):
    around = speedrun._around
    longer = lambda *args, **kwargs: {name: spent + 1.0 for name, spent in around(*args, **kwargs).items()}  # noqa: E731
    monkeypatch.setattr(speedrun, "_around", longer)
    found = speedrun.measure(config=record, seeds=2, within=within)
    assert found["seeds"] == len(found["seconds"]) == len(found["test_accuracy"]) == seeds
    beside = found["whitening_seconds"] + found["test_seconds"]
    for whole, training in zip(found["seconds"], found["training_seconds"], strict=True):
        assert whole == pytest.approx(training + beside, abs=2e-3) and beside >= 2
    assert found["ratio"] == pytest.approx(found["seconds_mean"] / speedrun.RECORD_SECONDS, abs=2e-3)


def test_a_turn_of_an_op_is_long_enough_for_the_clock(monkeypatch):
    """Whatever slowed one of the calls that the length is told by, and however long the first one compiled."""
    ends = iter([9.0, 9.0 + 5 / 512, 9.0 + 6 / 512, 9.0 + 10 / 512])
    monkeypatch.setattr(augment, "time", types.SimpleNamespace(perf_counter=lambda: next(ends)))
    assert augment._repeats(lambda: 0) == 26  # of 1/512 s
    calls = []
    augment._repeated(lambda: calls.append(0), 26)()
    assert len(calls) == 26


def test_trials_in_processes_of_their_own_are_one_cold_start_and_the_rest_warm(monkeypatch, tmp_path):
    spent = {"process0": np.array([10.0, 8.0]), "process1": np.array([4.0, 3.0])}
    monkeypatch.setattr(grid, "_train_command", lambda config, folder: spent[folder.name])
    monkeypatch.setattr(grid, "in_child", lambda *_, **__: [(5.0, 4.0), (6.0, 5.0), (8.0, 7.0)])
    found = grid._runs([None] * 3, tmp_path, counts=[1, 3])
    assert found["seconds_a_process"] == {"cold": 10.0, "warm": 4.0}
    assert found["times_faster"] == {"1": 2.0, "3": 18 / 8}
    assert found["cpu_times_less"] == {"1": 2.0, "3": 2.0}
    assert grid._runs([None], tmp_path, counts=[1])["times_faster"] == {"1": 2.0}


def test_starts_are_compared_with_the_default_convolutions_and_with_xlas(monkeypatch):
    seconds = {("auto", "cold"): 4.0, ("auto", "warm"): 3.0, ("xla", "cold"): 5.0, ("xla", "warm"): 1.0}
    first_step = lambda config, workdir: (seconds[config.convolution, workdir.name], 1.0)  # noqa: E731
    monkeypatch.setattr(startup, "first_step", first_step)
    monkeypatch.setattr(startup.subprocess, "run", lambda *_, **__: None)
    found = startup.measure(rounds=2)
    assert found["ratio"] == found["configs"]["resnet20"]["ratio"] == 0.75
    assert found["configs"]["resnet20_xla"]["ratio"] == 0.2


def test_a_stepper_goes_on_where_it_was_over_its_batches():
    seen = []

    def step(state, batch):
        seen.append((state, batch))
        return state + 1, {}

    call = turns.stepper(step, 0, ["a", "b", "c"], steps=2)
    assert call() == [2] and call() == [4]
    assert seen == [(0, "a"), (1, "b"), (2, "c"), (3, "a")]


def test_the_first_step_of_a_command_is_timed(digits, tmp_path):
    wall, cpu = startup.first_step(digits, tmp_path / "run")
    assert wall > 0 and cpu > 0


@pytest.mark.parametrize(("count", "platform"), [(1, "cuda"), (8, "cpu")])
def test_virtual_devices_are_cpus_beside_an_accelerator_too(count, platform, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    child._set_devices(count)
    assert os.environ["JAX_PLATFORMS"] == platform
    assert os.environ["XLA_FLAGS"].endswith(f" --xla_force_host_platform_device_count={count}")


# `bench` with measures that take no time, and give what they were given.
BENCH = """
import runpy, sys
from linseed.scripts.bench import checkpoint, loop, resnet50, speedrun
def given(config=None, **kwargs):
    model = {} if config is None else {"model": config.model.name}
    return {"ratio": 0.5, "ratio_is": "none", **model, **kwargs}
for module in (checkpoint, loop, resnet50, speedrun):
    module.measure = given
sys.argv[0] = "bench"
runpy.run_module("scripts.bench", run_name="__main__", alter_sys=True)
"""


def accelerator(*arguments):
    return forked.run(["-c", BENCH, "accelerator", *arguments])


def test_an_accelerator_gets_four_benchmarks_in_nine_minutes():
    done = accelerator("--toy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"loop", "checkpoint", "resnet50", "speedrun"} <= set(found) and found["ratio"] == 0.5
    assert found["loop"]["rounds"] == 1 and "rounds" not in found
    assert 0 < found["speedrun"]["within"] < 9 * 60
    for name in ("loop", "checkpoint"):
        assert found[name]["model"] == "cnn"


def test_data_that_are_missing_are_missed_before_the_first_measurement(tmp_path):
    done = accelerator(f"--root={tmp_path / 'nowhere'}")
    assert done.returncode == 2 and "nowhere" in done.stderr and done.stdout == ""
