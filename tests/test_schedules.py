"""Each schedule against its formula."""

import math

import numpy as np
import pytest

from trainer.errors import ConfigError
from trainer.schedules import SCHEDULES, epochs_to_steps, make_schedule

LR, TOTAL = 0.4, 50
FORMULAS = {
    "constant": lambda t, total: LR,
    "cosine": lambda t, total: LR / 2 * (1 + math.cos(math.pi * t / total)),
}


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_is_the_formula(name, warmup):
    schedule = make_schedule(name, lr=LR, warmup_steps=warmup, total_steps=TOTAL)
    for step in range(TOTAL):
        after = FORMULAS[name](step - warmup, TOTAL - warmup)
        expected = LR * step / warmup if step < warmup else after
        np.testing.assert_allclose(schedule(step), expected, atol=1e-6)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1, 16), (0.5, 8), (1e-9, 0), (2.03, 32)])
def test_epochs_become_whole_steps(epochs, steps):
    assert epochs_to_steps(epochs, num_examples=1000, batch_size=64) == steps


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match="lower schedule.warmup_epochs"):
        make_schedule("cosine", lr=LR, warmup_steps=TOTAL, total_steps=TOTAL)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        make_schedule("cosin", lr=LR, warmup_steps=0, total_steps=TOTAL)
