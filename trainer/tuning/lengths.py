"""How many train steps the trials of a study get, and the least budget that has room for every step of it."""

from typing import NamedTuple

from linseed.trainer.tuning import search
from linseed.trainer.tuning.budget import LEAST_STEPS

SAMPLE_STEPS = (25, 100, 300)  # a trial of step 2 whose loss stands still ends after one of these
TRIED_LONGER = 3  # of the rates that do not memorise the sample at once, the best
LR_STEPS = (25, 100)  # of step 3; the lecture: "within about a hundred iterations"
WINDOW = 5  # train steps of a log window in steps 2 and 3
COARSE = 0.15  # of the budget that is left when step 4 begins
LONGER = 3  # the second rung has so many times the steps


class Lengths(NamedTuple):
    """The lengths of steps 2 and 3, shorter under a small budget.

    budget: in train steps, None for one of time or none. others: how many rates are tried besides the config's own.
    points: at most so many in the grid of step 4.
    """

    budget: int | None
    others: int
    points: int

    def sample(self) -> list[int]:
        """The rungs of step 2, shorter where the steps that follow would have no room."""
        if self.budget is None or self._needed(SAMPLE_STEPS) <= self.budget:
            return list(SAMPLE_STEPS)
        return sorted(set(self._shortened(SAMPLE_STEPS)))

    def rates(self) -> list[int]:
        """The two rungs of step 3."""
        return self._shortened(LR_STEPS)

    def later(self) -> tuple[int, int]:
        """The fewest trial starts, and train steps, of step 4 and the final run."""
        runs, cost = halving(self.points)
        return runs + 2, (cost + 1) * LEAST_STEPS

    def least(self) -> int:
        """The least budget in steps, from `budget` on, that has room for every step."""
        tried = self
        while (needed := tried._needed(tried.sample())) > tried.budget:
            tried = tried._replace(budget=needed)
        return tried.budget

    def _needed(self, rungs) -> int:
        """The most train steps that steps 2 and 3 take, and the fewest of the others."""
        first, steps = self.rates()
        overfit = rungs[-1] + self.others * rungs[0] + TRIED_LONGER * (rungs[-1] - rungs[0])
        # All decades; of these three and the config's own for longer; two between, and the config's own decay.
        rates = (self.others + 1) * first + 4 * (steps - first) + 3 * steps
        return overfit + rates + self.later()[1]

    def _shortened(self, lengths) -> list[int]:
        if self.budget is None:
            return list(lengths)
        return [max(2 * WINDOW, min(steps, steps * self.budget // 3000)) for steps in lengths]


def halving(count: int) -> tuple[int, int]:
    """The cost of halving `count` trials once: trial starts, and steps in units of the first rung."""
    survivors = max(2, count // search.KEEP)
    return count + survivors, count + survivors * (LONGER - 1)


def first_rung(left: float, cost: int) -> float:
    """Steps of the first rung of step 4: its part of what is `left`, or the least if that has room."""
    return max(COARSE * left / cost, LEAST_STEPS if left >= (cost + 1) * LEAST_STEPS else 0)
