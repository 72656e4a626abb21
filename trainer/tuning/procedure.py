"""A study under way: the lecture's seven steps work on it, in order, within a budget.

1 check, 2 overfit, 3 lr, 4 coarse, 5 refine, 6 curves, and 7: back to 5, until the budget is spent or the winner stays
the same. Each step reads the earlier results from the record and the storage, and saves its own before the next begins:
after a kill, the same command continues. Steps 4 and 5 train at a constant rate, the final runs with the config's
schedule.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from linseed.trainer.errors import ConfigError
from linseed.trainer.experiment import Experiment, Shared
from linseed.trainer.optim.schedules import durations_to_steps
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.runtime import signals
from linseed.trainer.tuning import checks, trials
from linseed.trainer.tuning.budget import Budget, Ledger
from linseed.trainer.tuning.diagnosis.curve import CleanPass
from linseed.trainer.tuning.lengths import Lengths
from linseed.trainer.tuning.ranking import Trial
from linseed.trainer.tuning.search import Phase
from linseed.trainer.tuning.space import Point, Space
from linseed.trainer.tuning.study import Study
from linseed.trainer.tuning.trial_configs import TrialConfigs

DECADES = tuple(10.0**exponent for exponent in range(1, -6, -1))  # the lecture's 1e-1 to 1e-4, and beyond
HALF_A_DECADE = 10**0.5
AROUND = (1 / HALF_A_DECADE, 1.0, HALF_A_DECADE)  # the rate of step 3, in the grid of step 4
SMALL_DECAY = 1e-5
COUPLED_DECAYS = (1e-3, 1e-4, 0.0)  # part of the gradient
DECOUPLED_DECAYS = (1e-1, 1e-2, 0.0)  # multiplied by the learning rate


class Procedure:
    """What the steps of one study share. Each step saves its findings in the study's record.

    experiment: of the given config. storage: for steps 4 and 5; own_storage: for the steps before. rates, decays: the
    grid of step 4; without rates it lies around the rate of step 3. space: the further keys that step 5 draws.
    horizons: the durations of the final runs, as in config.horizon; none for the config's own.
    """

    def __init__(
        self,
        study: Study,
        experiment: Experiment,
        *,
        budget: Budget,
        storage: Any,
        own_storage: Any,
        name: str,
        sampler: str,
        rates: tuple[float, ...],
        decays: tuple[float, ...],
        space: Space,
        horizons: Sequence[dict[str, float]],
        shared: Shared,
        writer: Quiet,
        stop: Callable[[], int] = signals.never,
    ):
        self.study, self.experiment, self.config, self.writer = study, experiment, study.config, writer
        self.sampler, self.rates, self.decays, self.space = sampler, rates, decays, space
        self.configs = configs = TrialConfigs(study.config, experiment)
        self._shared = shared

        def phase(of, make, storage=own_storage, space=None):
            def run(trial, steps):
                workdir = trials.folder(study.workdir, trial.workdir)
                return trials.run(make(trial, steps), workdir, shared=shared, stop=stop)

            keys = dict(worker=study.record["worker"], identity=study.identity)
            return Phase(storage, name, name=of, space=space or {}, run=run, **keys)

        self.phases = {
            # Each machine runs the first steps itself; only the search is shared.
            "overfit": phase("overfit", configs.sample),
            "lr": phase("lr", configs.short),
            "plain": phase("plain", configs.plain),
            "unregularised": phase("unregularised", configs.unregularised),
            "search": phase("search", configs.constant, storage, space),
            "final": phase("final", configs.final, storage, space),
        }
        self.ledger = Ledger(study, list(self.phases.values()), budget=budget)
        points = (len(rates) or len(AROUND)) * len(decays) + 1
        self.lengths = Lengths(budget.steps, others=len(self.other_decades()), points=points)
        self.final_lengths = [self._in_steps(horizon) for horizon in horizons] or [experiment.total_steps]

    @functools.cached_property
    def probed(self) -> dict[str, Any]:
        """The untrained network, measured."""
        return checks.probe(self.experiment)

    def own_point(self) -> Point:
        return {"lr": self.config.optimizer.lr, "weight_decay": self.config.optimizer.weight_decay}

    def other_decades(self) -> list[float]:
        return [rate for rate in DECADES if not math.isclose(rate, self.config.optimizer.lr)]

    def clean_pass(self, trial: Trial | None) -> CleanPass | None:
        """The clean pass of `trial`; None if it failed or runs on another machine."""
        workdir = trials.folder(self.study.workdir, trial.workdir) if trial else None
        if not trial or trial.last.failed or not workdir.exists():
            return None
        return trials.clean_pass(workdir_lib.read_config(workdir), workdir, shared=self._shared)

    def refuse_to_begin_without_a_budget(self, name: str):
        """Raises ConfigError if the budget is spent before `name`, a step of fixed length, has begun."""
        if name in ("overfit", "lr") and self.ledger.is_spent() and not self.phases[name].trials():
            self.ledger.refuse(name)

    def refuse_without_room(self):
        """Raises ConfigError, before the first trial, if a budget of steps has no room for all steps."""
        budget = self.ledger.budget.steps
        if budget is None or any(phase.trials() for phase in self.phases.values()):
            return
        least = self.lengths.least()
        if least > budget:
            raise ConfigError(
                f"--budget={self.ledger.budget.text} has no room for every step of a study; the least that would do is "
                f"--budget={least}steps"
            )

    def refuse_without_time(self, *, starts: int, steps: int):
        """Raises ConfigError if a budget of time has no room for the rest of this step, and for steps 4 and 6.

        starts, steps: of the trials of step 3 that are to come; starts 0 where their time is not known yet.
        """
        if self.ledger.budget.seconds is not None and not self.phases["search"].trials():
            later_starts, later_steps = self.lengths.later()
            self.ledger.refuse_without_time(starts=starts and starts + later_starts, steps=steps + later_steps)

    def tell(self, line: str):
        """Shows a line, and saves the trials so far."""
        self.writer.say(line)
        self.study.note_trials(self.phases.values(), an_epoch=self.configs.an_epoch, space=self.space)
        self.study.save(steps_used=self.ledger.used_steps())

    def write(self, number: int, name: str, title: str, summary: str, findings: list, **more: Any):
        """Saves and shows the result of a step."""
        self.study.add_step(number, name, title, summary=summary, findings=findings, **more)
        self.tell(f"{number}. {title}: {summary}")
        for finding in findings:
            self.writer.say(f"   {finding}")

    def _in_steps(self, horizon):
        images, batch_size = len(self.experiment.train.labels), self.experiment.batch_size
        span = dict(num_examples=images, batch_size=batch_size, total_steps=None)
        return max(1, durations_to_steps("horizon", horizon, **span)["steps"])


def to_three_digits(rate: float) -> float:
    return float(f"{rate:.3g}")
