"""What is foretold of a run is what the run then does: counts, rates, rules, bytes. Nothing is opened or written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mlp import BATCH, CLASSES, PIXELS, TRAIN, VAL, WIDTH, mlp

from linseed.trainer import train
from linseed.trainer.cost import forecast as forecast_lib
from linseed.trainer.cost import measure as measure_lib
from linseed.trainer.cost.forecast import Assignment, Steps, assignments, disk, forecast, rates
from linseed.trainer.data import sources
from linseed.trainer.errors import ConfigError, WorkdirError
from linseed.trainer.optim import schedules
from linseed.trainer.optim.schedules import make_schedule
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet


def foretell(config, workdir=None):
    return forecast(config, workdir=workdir, timed_steps=2, time_limit=10.0, memory_limit=None)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("forecast") / "new"
    found = foretell(mlp(), workdir)
    assert found.standing.status == "none" and not workdir.exists()
    return found


def test_parameters_are_those_of_the_formula(found):
    counts = sorted(found.parameters.values())
    assert counts == sorted([PIXELS * WIDTH + WIDTH, WIDTH * CLASSES + CLASSES])
    assert sum(np.prod(each.shape, dtype=int) for each in found.assignments) == sum(counts)


def test_flops_of_a_step_are_those_of_its_matrix_products(found):
    """2 FLOP a parameter and example forward; backward twice that, but for the first layer's images."""
    forward = 2 * BATCH * sum(found.parameters.values())
    assert 2 * forward < found.flops.step < 1.5 * 3 * forward
    assert found.flops.missing == ()


def test_flops_that_xla_cannot_see_are_named(found):
    parts = foretell(mlp(**{"accumulation_parts": 4})).flops
    assert "up to 4 times" in parts.missing[0]
    assert found.flops.step / 4 < parts.step < found.flops.step


def test_flops_do_not_depend_on_how_devices_are_arranged(found):
    assert foretell(mlp(**{"parallel.backend": "shard_map"})).flops.step == pytest.approx(found.flops.step, rel=0.01)


def test_steps_are_counted_as_the_config_says(found):
    assert found.steps == (18, TRAIN / BATCH, 3, 5)
    assert found.steps.evaluations(after=0) == 4  # at 5, 10, 15 and 18


@pytest.mark.parametrize("every", [1, 3, 5, 6, 7, 40])
def test_evaluations_are_those_of_the_loop(every):
    judged = [step for step in range(1, 19) if step % every == 0 or step == 18]
    for step in [0, *judged]:
        left = Steps(total=18, per_epoch=4.0, warmup=0, eval_every=every).evaluations(after=step)
        assert left == len([later for later in judged if later > step])


def test_rates_are_the_schedules_own(found):
    schedule = make_schedule("cosine", lr=3e-3, warmup_steps=3, total_steps=18)
    assert found.rates.steps.tolist() == list(range(18))
    np.testing.assert_allclose(found.rates.lr, [float(schedule(step)) for step in range(18)], rtol=1e-5, atol=1e-9)
    assert not found.rates.at_most


def test_a_long_schedule_shows_its_ends_and_the_end_of_warm_up():
    shown = rates(
        make_schedule("linear", lr=2.0, warmup_steps=7_777, total_steps=10**6), warmup_steps=7_777, total_steps=10**6
    )
    assert shown.steps[[0, -1]].tolist() == [0, 10**6 - 1] and len(shown.steps) <= forecast_lib.POINTS + 1
    assert shown.lr[shown.steps.tolist().index(7_777)] == shown.lr.max() == 2.0


def test_a_schedule_that_follows_the_loss_shows_its_most():
    plateau = schedules.Plateau(lr=0.5, warmup_steps=2, factor=0.1, patience=1, rtol=1e-4, window_steps=1)
    shown = rates(plateau, warmup_steps=2, total_steps=5)
    assert shown.at_most
    np.testing.assert_allclose(shown.lr, [0.0, 0.25, 0.5, 0.5, 0.5])


def test_rules_are_written_out_for_each_parameter():
    params = {
        "head": {"bias": jnp.ones(3), "kernel": jnp.ones((4, 3))},
        "stem": {"norm": {"scale": jnp.ones(4)}},
    }
    assert assignments(("stem/.*: frozen", "head/kernel: lr=0.1, decay=2", "rest:"), params) == [
        Assignment("head/bias", (3,), "rest", 1.0, 0.0, False),
        Assignment("head/kernel", (4, 3), "head/kernel", 0.1, 2.0, False),
        Assignment("stem/norm/scale", (4,), "stem/.*", 0.0, 0.0, True),
    ]


def test_memory_holds_at_least_the_state_and_the_batch(found):
    batch = BATCH // jax.device_count() * (PIXELS + 4 + 4)
    unused = 16  # the step does not read the rate it last applied
    assert found.memory.arguments >= found.memory.state + batch - unused
    assert found.memory.peak >= found.memory.arguments + found.memory.temporaries
    params = 4 * sum(found.parameters.values())
    assert 3 * params <= found.memory.state < 3.1 * params  # AdamW: two moments
    assert found.memory.data == (TRAIN + VAL) * (PIXELS + 4)


def test_time_of_the_run_is_that_of_its_parts(found):
    seconds = found.seconds
    assert seconds.timed == 2 and min(seconds.step, seconds.compile, seconds.evaluation, found.start) > 0
    parts = found.start + seconds.compile + 18 * seconds.step + 4 * seconds.evaluation
    assert found.run_seconds(after=0) == pytest.approx(parts)


def test_a_device_without_room_is_one_line(monkeypatch):
    def full(*arguments, **keywords):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(measure_lib, "time_steps", full)
    with pytest.raises(ConfigError, match="lower config.data.batch_size") as error:
        foretell(mlp())
    assert "\n" not in str(error.value)


def test_disk_holds_latest_best_and_one_in_flight(tmp_path):
    assert disk(100, keep_latest=3, evaluations=50, workdir=None) == (100, 5, 500, 0, None)
    assert disk(100, keep_latest=3, evaluations=2, workdir=None).count == 2
    fits = disk(100, keep_latest=1, evaluations=9, workdir=tmp_path / "not" / "yet")
    assert fits.free > 0 and fits.fits and not (tmp_path / "not").exists()
    assert not disk(10**18, keep_latest=1, evaluations=9, workdir=tmp_path).fits
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "file").write_bytes(b"x" * 70)
    assert disk(100, keep_latest=1, evaluations=9, workdir=tmp_path).present == 70


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killer(Quiet):
    """Ends the run when it hands out step 15."""

    def advance(self, step):
        if step == 15:
            raise InterruptedError


def test_a_run_under_way_has_the_rest_left_and_is_not_touched(tmp_path):
    """Killed at step 15, it goes on from its checkpoint of step 10; finished, nothing is left."""
    config = mlp()
    with pytest.raises(InterruptedError):
        train.train_and_evaluate(config, tmp_path, writer=Killer(), on_config_change="refuse")
    before = files(tmp_path)
    found = foretell(config, tmp_path)
    assert files(tmp_path) == before
    assert found.standing == ("under way", 10, ())
    seconds = found.seconds
    rest = found.start + seconds.compile + 8 * seconds.step + 2 * seconds.evaluation
    assert found.run_seconds(after=10) == pytest.approx(rest)

    # A checkpoint on disk is what was foretold: its arrays, and a little for their names.
    size = sum(len(data) for path, data in before.items() if "checkpoints/10/" in str(path))
    assert 0.7 * found.disk.checkpoint < size < 1.1 * found.disk.checkpoint + 100_000
    assert found.disk.present >= size

    other = foretell(mlp(**{"optimizer.lr": 0.5}), tmp_path).standing
    assert other.status == "of another config" and other.changed == ("optimizer.lr: 0.003 -> 0.5",)

    train.train_and_evaluate(config, tmp_path, writer=Quiet(), on_config_change="refuse")
    openings = (tmp_path / workdir_lib.OPENINGS).read_text()
    finished = foretell(config, tmp_path).standing
    assert finished.status == "finished" and finished.step == 18
    assert (tmp_path / workdir_lib.OPENINGS).read_text() == openings


def test_the_test_split_stays_closed(monkeypatch):
    opened = []
    load = sources.load

    def watched(**keywords):
        return dataclasses.replace(load(**keywords), open_test=lambda: opened.append(1))

    monkeypatch.setattr(sources, "load", watched)
    foretell(mlp())
    assert not opened


def test_what_cannot_run_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="is a file; choose a folder"):
        foretell(mlp(), tmp_path / "file")
    with pytest.raises(ConfigError, match="config.optimizer.lr=-1.0 should be"):
        foretell(mlp(**{"optimizer.lr": -1.0}))
