"""Each schedule against its formula, and durations as whole steps."""

import inspect
import math

import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim.schedules import (
    DEFAULT_DURATIONS,
    SCHEDULES,
    durations_to_steps,
    epochs_to_steps,
    make_schedule,
    scaled_lr,
)

LR, TOTAL = 0.4, 50


def cosine(t, total):
    return LR / 2 * (1 + math.cos(math.pi * t / total))


def one_cycle(t, total, rise=12, div=25, final_div=1e4):
    low, end = LR / div, LR / (div * final_div)
    if t < rise:
        return low + (LR - low) * (1 - math.cos(math.pi * t / rise)) / 2
    return end + (LR - end) * (1 + math.cos(math.pi * (t - rise) / (total - 1 - rise))) / 2


def sgdr(t, total, length=5, factor=2):
    while t >= length:
        t, length = t - length, length * factor
    return cosine(t, length)


# (rate t steps after a warm-up that left `total` steps; parameters). `step` counts from the start of the run.
FORMULAS = {
    "constant": (lambda t, total: LR, {}),
    "cosine": (cosine, {}),
    "inverse_sqrt": (lambda t, total: LR / math.sqrt(t + 1), dict(timescale_steps=1)),
    "linear": (lambda t, total: LR * (1 - t / total), {}),
    "one_cycle": (one_cycle, dict(rise_steps=12, div_factor=25, final_div_factor=1e4)),
    "sgdr": (sgdr, dict(cycle_steps=5, cycle_factor=2)),
    "step": (
        lambda t, total: LR * 0.1 ** sum(t + TOTAL - total >= at for at in (20, 30, 45)),
        dict(at_steps=(20, 30, 45), factor=0.1),
    ),
}
PLATEAU = dict(factor=0.1, patience=1, rtol=1e-4, window_steps=1)


def test_every_schedule_has_its_formula_here():
    assert {*FORMULAS, "plateau"} == set(SCHEDULES)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_schedule_is_the_formula(name, warmup):
    formula, parameters = FORMULAS[name]
    schedule = make_schedule(name, lr=LR, warmup_steps=warmup, total_steps=TOTAL, **parameters)
    steps = np.arange(TOTAL)
    expected = [
        formula(0, TOTAL - warmup) * t / warmup if t < warmup else formula(t - warmup, TOTAL - warmup) for t in steps
    ]
    np.testing.assert_allclose([schedule(jnp.int32(t)) for t in steps], expected, atol=1e-6)


def test_the_peak_is_the_first_rate_after_warm_up():
    for name, (_, parameters) in FORMULAS.items():
        schedule = make_schedule(name, lr=LR, warmup_steps=10, total_steps=TOTAL, **parameters)
        peak = 10 + parameters.get("rise_steps", 0)
        assert (
            max(float(schedule(t)) for t in range(TOTAL)) == pytest.approx(float(schedule(peak))) == pytest.approx(LR)
        )
        assert schedule(0) == 0


def test_inverse_sqrt_with_the_warm_up_as_its_timescale_is_the_transformer_s():
    schedule = make_schedule("inverse_sqrt", lr=LR, warmup_steps=10, total_steps=TOTAL, timescale_steps=10)
    for step in range(1, TOTAL):
        expected = LR * math.sqrt(10) * min(step**-0.5, step * 10**-1.5)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)


def rates_of_plateau(values, *, warmup_steps=0, **parameters):
    schedule = make_schedule("plateau", lr=1.0, warmup_steps=warmup_steps, total_steps=99, **{**PLATEAU, **parameters})
    state, rates = schedule.init(), []
    for value in values:
        rates.append(float(schedule(state)))
        state = schedule.update(state, value=jnp.float32(value), grads="ignored")
    return rates


def torch_plateau(values, *, factor, patience, threshold):
    """The rate before each value under torch.optim.lr_scheduler.ReduceLROnPlateau, its other arguments by default."""
    rate, best, bad = 1.0, math.inf, 0
    for value in values:
        yield rate
        best, bad = (value, 0) if value < best * (1 - threshold) else (best, bad + 1)
        if bad > patience:
            rate, bad = rate * factor, 0


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_the_patience_of_plateau_is_pytorchs(patience):
    values = 1 + np.random.default_rng(patience).integers(0, 9, size=60) / np.arange(1, 61)
    expected = list(torch_plateau(values, factor=0.5, patience=patience, threshold=0.01))
    found = rates_of_plateau(values, factor=0.5, patience=patience, rtol=0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected[-1] < 0.5


def test_plateau_cuts_the_rate_after_more_than_patience_windows_without_a_better_loss():
    falling = [9, 8, 7, 6]
    np.testing.assert_allclose(rates_of_plateau(falling), 1)
    # 3 is the best; two windows are no better, and the next step has a tenth; then twice again.
    np.testing.assert_allclose(rates_of_plateau([3, 3, 3, 3, 3, 3]), [1, 1, 1, 0.1, 0.1, 0.01], rtol=1e-5)
    # A window is the mean of its steps: 4 and 2 are the 3 of before.
    np.testing.assert_allclose(
        rates_of_plateau([3, 3, 4, 2, 2, 4, 0], window_steps=2), [1, 1, 1, 1, 1, 1, 0.1], rtol=1e-5
    )
    # Five per cent better is not better where ten are asked for.
    np.testing.assert_allclose(rates_of_plateau([3, 2.85, 2.75, 0], rtol=0.1), [1, 1, 1, 0.1], rtol=1e-5)


def test_plateau_warms_up_and_watches_afterwards():
    rates = rates_of_plateau([1, 1, 1, 1, 5, 5, 5, 5], warmup_steps=4)
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, 1, 1, 1, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("step", dict(at_steps=(20, 20), factor=0.1), "should rise"),
        ("step", dict(at_steps=(30, 20), factor=0.1), "should rise"),
        ("step", dict(at_steps=(10,), factor=0.1), "after the warm-up"),
        ("step", dict(at_steps=(20, 50), factor=0.1), "within the run .50 steps.; schedule.at_percent fits any"),
        ("one_cycle", dict(rise_steps=0, div_factor=25, final_div_factor=1e4), "at least a step"),
        ("one_cycle", dict(rise_steps=39, div_factor=25, final_div_factor=1e4), "end before the last of .* 40 steps"),
        ("sgdr", dict(cycle_steps=0, cycle_factor=2), "schedule.cycle should be at least a step"),
        ("plateau", {**PLATEAU, "window_steps": 0}, "schedule.window should be at least a step"),
        ("inverse_sqrt", dict(timescale_steps=0), "schedule.timescale should be at least a step"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_in_one_line(name, parameters, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_schedule(name, lr=LR, warmup_steps=10, total_steps=TOTAL, **parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_last_step_of_one_cycle_has_its_lowest_rate(warmup):
    schedule = make_schedule("one_cycle", lr=LR, warmup_steps=warmup, total_steps=TOTAL, **FORMULAS["one_cycle"][1])
    np.testing.assert_allclose(schedule(TOTAL - 1), LR / (25 * 1e4), rtol=1e-5)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match="lower schedule.warmup_epochs"):
        make_schedule("cosine", lr=LR, warmup_steps=TOTAL, total_steps=TOTAL)


# Durations: 1000 examples in batches of 64 are 15.625 steps an epoch.


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1, 16), (0.5, 8), (1e-9, 0), (2.03, 32)])
def test_epochs_become_whole_steps(epochs, steps):
    assert epochs_to_steps(epochs, num_examples=1000, batch_size=64) == steps


def converted(section, *, total_steps=200):
    return durations_to_steps("schedule", section, num_examples=1000, batch_size=64, total_steps=total_steps)


@pytest.mark.parametrize(
    ("key", "value", "steps"),
    [
        ("warmup_epochs", 2.0, 31),
        ("warmup_steps", 17, 17),
        ("warmup_steps", 17.0, 17),
        ("warmup_examples", 6400, 100),
        ("warmup_percent", 5, 10),
        ("warmup_percent", 0.3, 1),
    ],
)
def test_a_duration_in_any_unit_becomes_steps(key, value, steps):
    found = converted({"name": "cosine", key: value})
    assert found == {"name": "cosine", "warmup_steps": steps} and type(found["warmup_steps"]) is int


def test_tuples_and_bare_units_are_durations_too():
    assert converted({"at_epochs": (1, 2.0), "factor": 0.1}) == {"at_steps": (16, 31), "factor": 0.1}
    assert converted({"at_percent": [50, 75]}) == {"at_steps": (100, 150)}
    assert converted({"epochs": 3.0}, total_steps=None) == {"steps": 47}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"warmup_epochs": 1, "warmup_steps": 5}, "warmup_epochs and config.schedule.warmup_steps are one duration"),
        ({"warmup_epochs": -1}, "warmup_epochs: a duration of -1 epochs should be at least 0"),
        ({"warmup_epochs": math.nan}, "should be at least 0, and finite"),
        ({"warmup_steps": 2.5}, "should be a whole number"),
        ({"warmup_percent": 101}, "at most 100"),
    ],
)
def test_durations_that_mean_nothing_are_refused_in_one_line(section, message):
    with pytest.raises(ConfigError, match=message) as error:
        converted(section)
    assert "\n" not in str(error.value)


def test_the_run_itself_cannot_last_a_percentage():
    with pytest.raises(ConfigError, match="not the length of the run itself"):
        converted({"percent": 50}, total_steps=None)


def test_every_parameter_that_is_a_duration_ends_in_its_unit():
    for name, entry in SCHEDULES.items():
        for parameter in inspect.signature(entry).parameters:
            assert "epochs" not in parameter and "percent" not in parameter, f"{name}: {parameter}"


def test_every_duration_has_a_default():
    for name, entry in SCHEDULES.items():
        parameters = inspect.signature(entry).parameters.values()
        bare = {p.name for p in parameters if p.default is p.empty} - {"lr", "warmup_steps", "decay_steps"}
        assert converted(DEFAULT_DURATIONS.get(name, {})).keys() == bare, name


@pytest.mark.parametrize("total", [20, 1003])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_defaults_suit_runs_of_any_length(name, total):
    durations = converted(DEFAULT_DURATIONS.get(name, {}), total_steps=total)
    schedule = make_schedule(name, lr=LR, warmup_steps=0, total_steps=total, **durations)
    if name not in ("constant", "plateau"):
        assert schedule(total - 1) < 0.3 * LR  # no restart just before the end


def test_the_rate_grows_with_the_batch():
    assert scaled_lr(0.1, batch_size=1024, lr_per_batch=256) == pytest.approx(0.4)
    assert scaled_lr(0.1, batch_size=64, lr_per_batch=256) == pytest.approx(0.025)
    assert scaled_lr(0.1, batch_size=1024, lr_per_batch=0) == 0.1
