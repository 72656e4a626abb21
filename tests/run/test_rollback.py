"""What is not finite is skipped, rolled back from, or said; and in each case a resumed run does the same."""

import collections
import faulthandler
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import ROOT, SHARED, Killer, Stop, Trip, records, run, tiny

from linseed.trainer import programs, resume
from linseed.trainer.errors import ConfigError, NonFiniteError, WorkdirError
from linseed.trainer.experiment import Shared
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.runtime import signals, watchdog
from linseed.trainer.step import nonfinite
from linseed.trainer.step.state import TrainState


def guarded(on_non_finite, **changes):
    return tiny(**{"guard.on_non_finite": on_non_finite, **changes})


@pytest.fixture(scope="module")
def spoiled():
    """What runs share whose steps are spoilt alike."""
    return collections.defaultdict(Shared)


@pytest.fixture
def spoil(monkeypatch, spoiled):
    """spoil(steps, above=rate): these steps come to NaN, in loss and parameters, where the rate is above `above`.

    Returns what to share between runs of these steps.
    """
    make = programs.make_train_step

    def spoil(steps, *, above=0.0):
        def make_spoiled(**kwargs):
            sound = make(**kwargs)

            def train_step(state, batch):
                after, found = sound(state, batch)
                bad = jnp.isin(state.step + 1, jnp.array(steps)) & (found["lr"] > above)
                nan = jnp.where(bad, jnp.nan, 1.0)
                params = jax.tree.map(lambda leaf: leaf * nan, after.params)
                return after.replace(params=params), {**found, "loss": found["loss"] * nan}

            return train_step

        monkeypatch.setattr(programs, "make_train_step", make_spoiled)
        return spoiled[tuple(steps), above]

    return spoil


def state(step, value):
    leaf = np.full(3, value, np.float32)
    return TrainState(
        step=np.int32(step), params={"w": leaf}, model_state={"m": leaf}, opt_state=(leaf,), rng=leaf, ema={"e": leaf}
    )


@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_ratio"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_skipped_step_changes_the_count_of_steps_alone(name, value):
    found = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "update_ratio": jnp.float32(1)}
    for metrics, expected in ((found, state(8, 2.0)), ({**found, name: jnp.float32(value)}, state(8, 1.0))):
        step = nonfinite.skipping(lambda _, __, metrics=metrics: (state(8, 2.0), metrics))
        after, same = jax.jit(step)(state(7, 1.0), None)
        jax.tree.map(np.testing.assert_array_equal, after, expected)
        jax.tree.map(np.testing.assert_array_equal, same, metrics)


def test_where_all_is_finite_skip_changes_nothing(tmp_path):
    plain, careful = run(tiny(), tmp_path / "plain", shared=SHARED), run(guarded("skip"), tmp_path / "skip")
    assert careful["val"]["loss"] == pytest.approx(plain["val"]["loss"], rel=1e-3)
    assert all(record["skipped"] == 0 for record in records(tmp_path / "skip"))


@pytest.mark.parametrize("polls", [(12,), (6, 3), (11, 1, 5)])
def test_skipped_steps_are_counted_and_left_out_whatever_stops_the_run(tmp_path, spoil, polls):
    config, shared = guarded("skip"), spoil([5, 10, 11, 22])
    whole = run(config, tmp_path / "whole", shared=shared)
    for poll in polls:
        with pytest.raises(signals.Stopped):
            run(config, tmp_path / "parts", stop=Trip(poll), shared=shared)
    again = run(config, tmp_path / "parts", shared=shared)
    assert (again["params_sha256"], again["test"]) == (whole["params_sha256"], whole["test"])
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    skipped = {record["step"]: record["skipped"] for record in records(tmp_path / "whole")}
    assert {step: count for step, count in skipped.items() if count} == {6: 1, 12: 2, 24: 1}
    assert all(np.isfinite(record["train_loss"]) for record in records(tmp_path / "whole"))


@pytest.mark.parametrize("polls", [(), (7,), (6, 2)])
def test_too_many_skipped_in_a_row_end_the_run_across_windows_and_stops(tmp_path, spoil, polls):
    config, shared = guarded("skip"), spoil([5, 6, 7, 8])  # 3 may be
    for poll in polls:
        with pytest.raises(signals.Stopped):
            run(config, tmp_path, stop=Trip(poll), shared=shared)
    with pytest.raises(NonFiniteError, match="the loss of step 8 is not finite .*the checkpoint of step 4 is good"):
        run(config, tmp_path, shared=shared)


def noted(path):
    """(step, to) of each rollback."""
    return [(line["step"], line["to"]) for line in map(json.loads, path.read_text().splitlines())]


# Step 7 is bad at a rate of about 0.02 and 0.01, and no longer at 0.005.
@pytest.fixture
def twice(tmp_path, spoil):
    config, shared = guarded("rollback"), spoil([7], above=0.006)
    killer = Killer(-1)
    return config, shared, run(config, tmp_path / "whole", writer=killer, shared=shared), killer.said


def test_a_rollback_goes_on_from_the_checkpoint_at_the_lower_rate(tmp_path, twice):
    config, shared, whole, said = twice
    assert noted(tmp_path / "whole" / "rollbacks.jsonl") == [(7, 4)] * 2
    assert [line for line in said if "rollback" in line] == [
        "rollback 1 of 3: the loss of step 7 is not finite; back to step 4, on with 0.5 times the learning rate",
        "rollback 2 of 3: the loss of step 7 is not finite; back to step 4, on with 0.25 times the learning rate",
    ]
    # As if the rate had been set by hand after step 4.
    with pytest.raises(signals.Stopped):
        run(config, tmp_path / "hand", stop=Trip(5), shared=shared)
    lower = guarded("rollback", **{"optimizer.lr": 0.02 / 4})
    by_hand = run(lower, tmp_path / "hand", on_config_change="accept", shared=shared)
    assert by_hand["params_sha256"] == whole["params_sha256"]
    assert records(tmp_path / "hand") == records(tmp_path / "whole")
    steps = [record["step"] for record in records(tmp_path / "whole")]
    assert steps == sorted({*range(3, 25, 3), *range(4, 25, 4)})


def test_a_rollback_is_the_same_whatever_stops_or_kills_the_run(tmp_path, twice):
    """Stopped before step 7, on the second and third way, after; killed before and after the next checkpoint."""
    config, shared, whole, _ = twice
    for polls in ((7,), (6, 1, 2), (20,)):
        workdir = tmp_path / f"stopped{polls}"
        for poll in polls:
            with pytest.raises(signals.Stopped):
                run(config, workdir, stop=Trip(poll), shared=shared)
        assert run(config, workdir, shared=shared)["params_sha256"] == whole["params_sha256"]
        assert records(workdir) == records(tmp_path / "whole")
        assert (workdir / "rollbacks.jsonl").read_text() == (tmp_path / "whole" / "rollbacks.jsonl").read_text()
    for step in (13, 23):
        workdir = tmp_path / f"killed{step}"
        with pytest.raises(Stop):
            run(config, workdir, writer=Killer(step), shared=shared)
        assert run(config, workdir, shared=shared)["params_sha256"] == whole["params_sha256"]
        assert records(workdir) == records(tmp_path / "whole")


def test_rollbacks_are_limited_and_a_run_may_go_back_to_its_beginning(tmp_path, spoil):
    shared = spoil([2])
    config = guarded("rollback", **{"guard.max_times": 2})
    with pytest.raises(NonFiniteError, match="after 2 rollbacks the loss of step 2 is not finite.*no checkpoint yet"):
        run(config, tmp_path, shared=shared)
    assert noted(tmp_path / "rollbacks.jsonl") == [(2, 0), (2, 0)]


def test_another_config_in_a_workdir_without_a_checkpoint_forgets_the_rollbacks(tmp_path, spoil):
    shared = spoil([2], above=0.003)
    with pytest.raises(NonFiniteError, match="after 3 rollbacks"):
        run(guarded("rollback", **{"guard.lr_factor": 1.0}), tmp_path, shared=shared)
    run(guarded("rollback", **{"guard.lr_factor": 0.5, "optimizer.lr": 0.005}), tmp_path, shared=shared)
    assert not (tmp_path / "rollbacks.jsonl").exists()


class Held:
    """Checkpoints of some steps."""

    def __init__(self, *steps):
        self.steps = steps

    def evaluated_steps(self):
        return self.steps

    def drop_after(self, step):
        assert step == max(self.steps, default=0)


def rolled_back(path, *pairs):
    """Rollbacks in `path`, made at these (step, to)."""
    rollbacks = Rollbacks(path, on_non_finite="rollback", max_times=9, lr_factor=0.5)
    for step, to in pairs:
        rollbacks.roll_back(Held(*filter(None, (to,))), NonFiniteError("", what="the loss", step=step))
    return rollbacks


def test_the_clock_counts_no_time_twice_after_a_rollback(tmp_path, spoil):
    """The parts of a run are timed one after the other, and all lie within it."""
    shared = spoil([7], above=0.006)
    config = guarded("rollback", **{"guard.lr_factor": 0.25})
    began = time.monotonic()
    seconds = run(config, tmp_path, shared=shared)["seconds"]
    assert noted(tmp_path / "rollbacks.jsonl") == [(7, 4)]
    assert 0 < seconds < time.monotonic() - began


@pytest.mark.parametrize("at", range(0, 80, 7))
def test_a_rollback_that_is_not_what_was_written_is_refused(tmp_path, at):
    path = tmp_path / "r.jsonl"
    rollbacks = rolled_back(path, (7, 4), (9, 8))
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)
    for ask in (lambda: rollbacks.lr_scale(12), lambda: rollbacks.roll_back(Held(), NonFiniteError(""))):
        with pytest.raises(WorkdirError, match="r.jsonl is damaged.*delete it to go on at config.optimizer.lr"):
            ask()


def test_rollbacks_to_steps_that_are_ahead_again_are_forgotten(tmp_path):
    rollbacks = rolled_back(tmp_path / "r.jsonl", (7, 4), (9, 8), (11, 8))
    assert rollbacks.lr_scale(12) == rollbacks.lr_scale(8) == 0.125
    assert rollbacks.lr_scale(4) == rollbacks.lr_scale(12) == 0.5
    assert rollbacks.lr_scale(0) == rollbacks.lr_scale(12) == 1.0


def metrics_of(norm, *, loss=1.0, ratio=1e-2):
    return {"loss": loss, "grad_norm": norm, "update_ratio": ratio}


NAN = float("nan")


@pytest.mark.parametrize(
    ("steps", "precision", "says"),
    [
        (
            [metrics_of(1.0)] * 4 + [metrics_of(30.0), metrics_of(NAN, loss=NAN)],
            "float32",
            "had grown from 1 to 30: lower",
        ),
        ([metrics_of(1.0, ratio=3.0), metrics_of(NAN, loss=NAN)], "float32", "grown to 3 times the parameters: lower"),
        ([metrics_of(1.0)] * 9 + [metrics_of(NAN, loss=NAN)], "float32", "came suddenly.*images and labels"),
        ([metrics_of(1.0)] * 9 + [metrics_of(NAN)], "bfloat16", "config.precision='float32'"),
        (
            [metrics_of(1.0)] * 9 + [metrics_of(1.0, ratio=NAN)],
            "float32",
            "the update was not: raise config.optimizer.eps",
        ),
        ([metrics_of(NAN, loss=NAN)], "float32", "too few steps.*lower config.optimizer.lr"),
    ],
)
def test_the_likely_cause_is_read_off_the_steps_before(steps, precision, says):
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(nonfinite.likely_cause(steps, precision=precision))


@pytest.mark.parametrize(
    ("key", "value"),
    [("on_non_finite", "ignore"), ("max_times", 0), ("lr_factor", 0.0), ("lr_factor", 2.0), ("watchdog_minutes", -1.0)],
)
def test_a_guard_that_cannot_be_is_refused(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"config.guard.{key}="):
        run(tiny(**{f"guard.{key}": value}), tmp_path)


@pytest.fixture
def timers(monkeypatch):
    """The seconds that the timer was set to, in place of the timer; None where it was turned off."""
    found = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: found.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: found.append(None))
    return found


def test_the_watchdog_of_a_run_allows_for_the_compiler_and_ends_with_it(tmp_path, timers):
    run(tiny(**{"guard.watchdog_minutes": 2.0}), tmp_path, shared=SHARED)
    assert timers[:4] == [1200, 120, 1200, 120]  # until the first call, the next, the first evaluation, the next call
    assert set(timers[4:-2]) <= {120} and timers[-2:] == [1200, None]  # the judging
    timers.clear()
    run(tiny(), tmp_path / "off", shared=SHARED)
    assert timers == []


def test_the_watchdog_is_set_before_the_state_is_restored(tmp_path, timers, monkeypatch):
    restore, seen = resume.restore, []

    def watched_restore(*arguments, **options):
        seen.extend(timers)
        return restore(*arguments, **options)

    monkeypatch.setattr(resume, "restore", watched_restore)
    run(tiny(**{"guard.watchdog_minutes": 2.0}), tmp_path, shared=SHARED)
    assert seen == [1200]


def test_the_watchdog_is_set_anew_but_not_at_every_step(timers, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with watchdog.watched(1.0) as alive:
        for clock[0] in (0.0, 0.1, 0.2, 30.0, 59.0, 59.1):
            alive()
    assert timers == [60, 60, 60, None]


def test_a_hang_shows_where_and_ends_the_process():
    code = """import time
from linseed.trainer.runtime import watchdog
with watchdog.watched(0.002) as alive:
    alive(); time.sleep(30)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and 'File "<string>", line 4' in done.stderr
