"""What the steps of a study cost: the least budget has room for them all, and one step less has not."""

import pytest

from linseed.trainer.tuning import lengths
from linseed.trainer.tuning.budget import LEAST_STEPS
from linseed.trainer.tuning.lengths import Lengths


@pytest.mark.parametrize("points", [2, 10, 31])
@pytest.mark.parametrize("others", [6, 7])
def test_the_least_budget_has_room_for_itself_and_no_smaller_one_has(others, points):
    least = Lengths(1, others, points).least()
    assert Lengths(least, others, points).least() == least
    assert all(Lengths(budget, others, points).least() > budget for budget in range(1, least))


def test_without_a_budget_of_steps_the_lengths_are_the_natural_ones():
    natural = Lengths(None, 6, 10)
    assert tuple(natural.sample()) == lengths.SAMPLE_STEPS and tuple(natural.rates()) == lengths.LR_STEPS


def test_a_small_budget_shortens_and_a_large_one_does_not():
    small, large = Lengths(Lengths(1, 6, 10).least(), 6, 10), Lengths(10**6, 6, 10)
    assert small.sample()[-1] < large.sample()[-1] == lengths.SAMPLE_STEPS[-1]
    assert small.rates()[-1] < large.rates()[-1] == lengths.LR_STEPS[-1]


def test_halving_ten_points_keeps_three_for_three_times_the_steps():
    assert lengths.halving(10) == (10 + 3, 10 + 3 * 2)


def test_step_4_gets_its_part_or_the_least_or_nothing():
    cost = 16
    assert lengths.first_rung(10_000, cost) == pytest.approx(0.15 * 10_000 / cost)
    assert lengths.first_rung((cost + 1) * LEAST_STEPS, cost) == LEAST_STEPS
    assert lengths.first_rung((cost + 1) * LEAST_STEPS - 1, cost) < LEAST_STEPS
