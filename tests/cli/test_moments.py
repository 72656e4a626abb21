"""Runs that are ended from outside: where the moments lie, and what the command that uses them says."""

import json

import numpy as np
from support import forked
from support.commands import command, refusal

from linseed.scripts.cli.moments import STAGES, Run, Timeline, draw
from linseed.trainer.run.compare import differences


def test_moments_are_spread_evenly_over_all_stages_and_lie_within_the_run():
    timeline = Timeline(config=2.0, first_record=3.0, end=5.0, records=12)
    moments = draw(50, timeline=timeline, rng=np.random.default_rng(0))
    assert [sum(moment.stage == stage for moment in moments) for stage in STAGES] == [10] * len(STAGES)
    assert all(1 <= moment.records < 12 for moment in moments)
    assert all(0 <= moment.seconds < 2.0 for moment in moments if moment.stage == "start")
    assert [moment.records for moment in moments] == sorted(moment.records for moment in moments)


def test_a_killed_run_of_a_users_config_is_proven_equal(tmp_path):
    arguments = ["--kills=1", "--steps=8", "--config.model.name=linear", "--config.data.augment="]
    arguments += [f"--workdir={tmp_path / 'kept'}"]
    done = command("verify_resume", "--config=configs/digits.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal: 8 steps, 1 of 1 kills in time" in done.stdout and "by itself, status 0" in done.stdout
    assert differences(tmp_path / "kept" / "straight", tmp_path / "kept" / "killed") == []
    assert "is not empty" in refusal("verify_resume", "--config=configs/digits.py", *arguments)


TOO_LATE = """
import runpy
from linseed.scripts.cli import moments

class Run:
    def __init__(self, config, workdir):
        self.workdir = workdir
    def timeline(self):
        return moments.Timeline(1.0, 2.0, 3.0, 8)
    def end_at(self, moment, *, by):
        self.workdir.mkdir(parents=True)
        return False
    def finish(self):
        assert self.workdir.exists()

moments.Run = Run
runpy.run_module("scripts.verify_resume", run_name="__main__", alter_sys=True)
"""


def test_without_a_kill_in_time_nothing_is_called_proven():
    done = forked.run(["-c", TOO_LATE, "--config=configs/digits.py"])
    assert done.returncode == 2 and "equal" not in done.stdout
    assert done.stderr.startswith("error: none of the 3 kills came before") and "raise --steps" in done.stderr


def test_the_step_that_a_start_went_on_after_is_read_off_what_it_said(tmp_path):
    run = object.__new__(Run)
    run._log, run._said_before = tmp_path / "run.log", 4
    for said, step in (("", 0), ("resuming after step 12\n", 12), ("a\nresuming after step 1,024\nb", 1024)):
        run._log.write_text("new\n" + said)
        assert run.resumed_after() == step


def test_the_benchmark_counts_what_held(tmp_path):
    done = command("bench", "faults", "--parts=inputs")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ratio"] == 1.0 and result["parts"]["inputs"]["held"] == "500 of 500"
    assert "did you mean 'kills'" in refusal("bench", "faults", "--parts=kill")
