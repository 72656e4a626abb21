"""The command `linseed`, and what every subcommand shares."""

import os
import subprocess
import sys

import pytest
from support import forked

from linseed.__main__ import COMMANDS


def linseed(*arguments, **kwargs):
    command = [sys.executable, "-P", "-m", "linseed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_help_lists_the_commands_and_an_unknown_one_is_told_the_nearest():
    for call in ([], ["--help"], ["help"]):
        done = linseed(*call)
        assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS)
    wrong = linseed("trian")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: unknown command 'trian'; did you mean 'train'?")
    assert linseed("--version").stdout.startswith("linseed 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_what_it_is_for_and_its_own_flags(name):
    done = linseed(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: linseed {name}" in done.stdout and "--debug" in done.stdout
    assert "absl" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 125
    if name in ("train", "tune", "doctor", "verify-resume"):
        assert "--config " in done.stdout and "--workdir " in done.stdout


def test_the_help_of_evaluate_says_what_each_choice_of_weights_is():
    shown = linseed("evaluate", "--help").stdout
    choices = shown[shown.index("--which") :].partition(">")[0].partition("<")[2].split("|")
    assert set(choices) == {"best", "latest", "ema", "snapshots"} and all(f"{each}: " in shown for each in choices)


def test_print_config_shows_every_key_and_needs_no_workdir(tmp_path):
    flags = ["--config=digits", "--config.optimizer.name", "lion", "--config.model.widths=(8,)", "--print_config"]
    done = linseed("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "optimizer.name = 'lion'" in lines and "optimizer.b2 = 0.99" in lines and "model.widths = (8,)" in lines
    assert "guard.on_non_finite = 'stop'" in lines and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=digits"], "--workdir is missing; the command is linseed train --config=CONFIG --workdir=WORKDIR"),
        (["--workdir=x"], "--config is missing"),
        (["--config=digits", "--workdir=x", "--config.horizon.epochs"], "--config.horizon.epochs has no value"),
        (["--config=digits", "--workdir=x", "--config.optimizer.lr=abc"], "lr='abc' should be a number above 0"),
        (["--config=digits", "--workdir=x", "--config.modle.widths=(1,)"], "unknown config key 'modle.widths'"),
        (["--config=absent.py", "--workdir=x"], "no config file at absent.py"),
        (["--config=digts", "--workdir=x"], "no page 'digts'; did you mean 'digits'?"),
        (["--config=digits:quik", "--workdir=x"], "unknown config variant 'quik'; known: quick"),
        (["--config=digits", "--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, flags, says):
    done = forked.run(["-m", "linseed", "train", *flags], cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not os.listdir(tmp_path)


def test_the_home_folder_is_expanded_in_paths(tmp_path):
    flags = ["--config=digits", "--config.model.name=linear", "--config.data.augment=", "--out=~/out", "--steps=1"]
    done = linseed("doctor", *flags, env=os.environ | {"HOME": str(tmp_path)})
    assert done.returncode == 0 and (tmp_path / "out" / "schedule.svg").exists(), done.stderr
