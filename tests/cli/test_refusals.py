"""The commands as a user meets them: one line for what is wrong, a status, earlier work untouched."""

import json

import numpy as np
import pytest
from PIL import Image
from support.commands import command, refusal

from linseed.configs import digits
from linseed.scripts.bench.grid import one_program
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data.augment import OPS

TINY = [
    "--config.model.widths=(4,)",
    "--config.horizon.epochs=1.0",
    "--config.schedule.warmup_epochs=0.1",
    "--config.log_every_steps=10",
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--config is missing; the command is python -m scripts.train"),
        (["--config=configs/digits.py"], "--workdir is missing"),
        (["--config=configs/nope.py", "--workdir=x"], "no config file at configs/nope.py"),
        (["--config=configs/digits.py:quik", "--workdir=x"], "unknown config variant 'quik'; known: quick"),
        (["--config=digits", "--workdir=x", "--config.optimizer.lrr=1"], "did you mean 'optimizer.lr'?"),
        (["--config=digits", "--workdir=x", "--config.nothing.like=1"], "unknown config key 'nothing.like'"),
        (["--config=digits", "--workdir=x", "--config.optimizer.lr=abc"], "lr='abc' should be a number above 0"),
        (["--config=configs/digits.py", "--workdir=x", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_flags_are_one_line(arguments, says):
    assert says in refusal("train", *arguments)


def test_a_run_then_its_evaluation_then_its_replay(tmp_path):
    workdir = tmp_path / "run"
    done = command("train", "--config=configs/digits.py:quick", f"--workdir={workdir}", *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in ("digits: ", "val loss", "images/s", "left", "result.json", "test opened 1 time"):
        assert text in done.stdout, done.stdout
    result = json.loads((workdir / "result.json").read_text())

    judged = json.loads(command("evaluate", f"--workdir={workdir}", "--which=latest", "--split=val").stdout)
    assert judged["examples"] == result["val"]["examples"]
    assert judged["test_openings"] == 1

    replay = f"--config=configs/replay.py:{workdir / 'config.json'}"
    again = command("train", replay, f"--workdir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "result.json").read_text())["params_sha256"] == result["params_sha256"]

    other = ["--config.optimizer.lr=0.5"]
    said = refusal("train", "--config=configs/digits.py:quick", f"--workdir={workdir}", *TINY, *other)
    assert "optimizer.lr: 0.003 -> 0.5" in said and "--on_config_change=accept" in said
    assert json.loads((workdir / "result.json").read_text()) == result


def test_bad_data_is_one_line_and_can_be_mended_in_the_same_workdir(tmp_path):
    """A truncated JPEG is named and counted; `skip` then trains on the rest, under the same workdir."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.jpg")
    bad = tmp_path / "data" / "dog" / "7.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    arguments = [
        f"--config=configs/cifar10_small.py:quick,root={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source.image_size=16",
        "--config.model.widths=(4,)",
        "--config.model.stem_width=4",
        "--config.data.batch_size=8",
        "--config.eval.batch_size=8",
        "--config.convolution=xla",
    ]
    said = refusal("train", *arguments)
    assert "1 of" in said and "7.jpg" in said and "config.data.source.on_bad_image=skip" in said
    done = command("train", *arguments, "--config.data.source.on_bad_image=skip")
    assert done.returncode == 0, done.stderr
    assert "7.jpg" in done.stdout


def test_a_workdir_without_a_run_is_one_line(tmp_path):
    assert "holds no run" in refusal("evaluate", f"--workdir={tmp_path / 'nowhere'}")
    assert not (tmp_path / "nowhere").exists()


def test_a_benchmark_prints_one_json_line_with_a_ratio(tmp_path):
    arguments = ["--batch=4", "--size=32", "--rounds=1", f"--out={tmp_path}"]
    done = command("bench", "augment", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result == json.loads((tmp_path / "augment.json").read_text())
    assert result["ratio"] > 0 and set(OPS) <= set(result["images_per_second"])


def test_the_benchmark_of_a_grid_measures_every_way():
    done = command("bench", "grid", "--models=linear", "--trials=1", "--steps=1", "--rounds=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    figures = result["models"]["linear"]
    assert result["ratio"] == figures["runs"]["times_faster"]["1"] > 0
    assert {"alone", "vmap_1", "map_1"} == set(figures["steps_of_trials"])
    assert figures["over_4_devices"]["trial_a_device"]["times_faster"] > 0


def test_trials_in_one_program_end_where_they_end_alone(tmp_path):
    configs = []
    for lr, seed in ((3e-3, 0), (1e-3, 1)):
        config = resolve(digits.get_config())
        config.model = {"name": "linear"}
        config.schedule = {"name": "constant", "warmup_steps": 0}
        config.optimizer.lr, config.seed = lr, seed
        configs.append(config)
    found = one_program(configs, tmp_path, counts=[2], turn=3, rounds=1)
    # Adam's steps are about as long as the rate: a trial that took the other's would be 1e-3 off.
    assert found["vmap_2"]["difference"] < 1e-5
    assert found["map_2"]["difference"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "NAME is missing; the command is python -m scripts.bench NAME"),
        (["augmnt"], "did you mean 'augment'"),
        (["grid", "--models=lineer"], "did you mean 'linear'"),
        (["grid", "--trials=0"], "--trials=0"),
    ],
)
def test_an_unknown_benchmark_is_one_line(arguments, says):
    assert says in refusal("bench", *arguments)
