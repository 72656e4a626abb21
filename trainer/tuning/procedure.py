"""The lecture's seven steps, in order, within a budget.

1 check, 2 overfit, 3 lr, 4 coarse, 5 refine, 6 curves, and 7: back to 5, until the budget is spent or the winner stays
the same. Each step reads the earlier results from the record and the storage, and saves its own before the next begins:
after a kill, the same command continues. Steps 4 and 5 train at a constant rate, the final run with the config's
schedule.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from linseed.trainer.config.changes import changed
from linseed.trainer.errors import ConfigError, LinseedError
from linseed.trainer.experiment import Experiment, Shared
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.runtime import signals
from linseed.trainer.tuning import checks, data_checks, search, trials
from linseed.trainer.tuning.budget import LEAST_STEPS, UNLIMITED, Budget, Ledger
from linseed.trainer.tuning.diagnosis import curves
from linseed.trainer.tuning.diagnosis.curve import CleanPass
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.floors import chance_loss
from linseed.trainer.tuning.lengths import (
    LONGER,
    LR_STEPS,
    SAMPLE_STEPS,
    TRIED_LONGER,
    WINDOW,
    Lengths,
    first_rung,
    halving,
)
from linseed.trainer.tuning.search import Phase, Trial, best_within_a_standard_error
from linseed.trainer.tuning.study import WINNER, Study
from linseed.trainer.tuning.trials import Outcome

DECADES = tuple(10.0**exponent for exponent in range(1, -6, -1))  # the lecture's 1e-1 to 1e-4, and beyond
HALF_A_DECADE = 10**0.5
AROUND = (1 / HALF_A_DECADE, 1.0, HALF_A_DECADE)  # the rate of step 3, in the grid of step 4
SMALL_DECAY = 1e-5
COUPLED_DECAYS = (1e-3, 1e-4, 0.0)  # part of the gradient
DECOUPLED_DECAYS = (1e-1, 1e-2, 0.0)  # multiplied by the learning rate

SAMPLE_BATCHES = 5  # in the sample to overfit
REFINE = 0.45  # of the budget that is left when a round begins
COARSE_EPOCHS, REFINE_EPOCHS = 1.0, 5.0  # of the first rung, at most
WITHOUT = {"augmentation": "plain", "decay_too_high": "unregularised"}  # cause -> the phase that leaves it out
NEW_POINTS = 4  # in a round of step 5


class Procedure:
    """The steps of one study, one method each. Each saves its findings in the study's record.

    experiment: of the given config. storage: for steps 4 and 5; own_storage: for the steps before. rates, decays: the
    grid of step 4; without rates it lies around the rate of step 3.
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
        shared: Shared,
        writer: Quiet,
        stop: Callable[[], int] = signals.never,
    ):
        self.study, self.experiment, self.writer = study, experiment, writer
        self._shared = shared
        self._config, self._sampler, self._rates, self._decays = study.config, sampler, rates, decays
        images, classes, batch_size = len(experiment.train.labels), experiment.num_classes, experiment.batch_size
        self._an_epoch = images / batch_size
        self._sample_size = min(max(SAMPLE_BATCHES * batch_size, classes), images)
        # Step 3 leaves out as many train images as validation has, to compare the two, but never more than half.
        enough = min(LR_STEPS[-1] * batch_size, images - min(len(experiment.val.labels), images // 2))
        self._rate_images = min(max(enough, classes), images)

        def phase(of, make, storage=storage):
            def run(trial, steps):
                workdir = trials.folder(study.workdir, trial.workdir)
                return trials.run(make(trial, steps), workdir, shared=shared, stop=stop)

            keys = dict(worker=study.record["worker"], config_sha256=study.record["config_sha256"])
            return Phase(storage, name, name=of, run=run, **keys)

        self.phases = {
            # Each machine runs the first steps itself; only the search is shared.
            "overfit": phase("overfit", self._sample_config, own_storage),
            "lr": phase("lr", self._short_config, own_storage),
            "plain": phase("plain", self._plain_config, own_storage),
            "unregularised": phase("unregularised", self._unregularised_config, own_storage),
            "search": phase("search", self._constant_config),
            "final": phase("final", self._final_config),
        }
        self.ledger = Ledger(study, list(self.phases.values()), budget=budget)
        points = (len(rates) or len(AROUND)) * len(decays) + 1
        self._lengths = Lengths(budget.steps, others=len(self._other_decades()), points=points)

    # The configs of the trials.

    def _constant_config(self, trial, steps):
        return trials.at_constant_rate(
            trials.at_point(self._config, trial.point),
            steps=steps,
            eval_every_steps=max(1, round(self._an_epoch)),
            log_every_steps=self._config.log_every_steps,
        )

    def _short_config(self, trial, steps):
        short = {"log_every_steps": WINDOW, "data.train_examples": self._rate_images}
        return changed(self._constant_config(trial, steps), short)

    def _plain_config(self, trial, steps):
        return trials.plain(self._short_config(trial, steps))

    def _unregularised_config(self, trial, steps):
        return trials.unregularised(self._short_config(trial, steps))

    def _sample_config(self, trial, steps):
        config = trials.sample(self._short_config(trial, steps), examples=self._sample_size)
        return changed(config, {"eval.every_steps": max(SAMPLE_STEPS)})

    def _final_config(self, trial, steps):
        return trials.shortened(
            trials.at_point(self._config, trial.point),
            steps=steps,
            total_steps=self.experiment.total_steps,
            num_examples=len(self.experiment.train.labels),
        )

    # The steps.

    def check(self):
        """1. The loss before training: near that of equal scores for all classes, more with the regulariser."""
        experiment = self.experiment
        findings, numbers = checks.initial_loss(
            self._probed, experiment.state.params, config=self._config, steps=experiment.total_steps
        )
        findings = data_checks.splits(experiment.train, experiment.val, leaked=experiment.leaked) + findings
        summary = f"{numbers['initial loss']:.4f}; equal scores for all classes give {numbers['expected']:.4f}"
        if numbers["with the regulariser"] > numbers["initial loss"]:
            summary += f"; the regulariser raises it to {numbers['with the regulariser']:.4f}"
        self._write(1, "check", "Initial loss", summary, findings, numbers=numbers)

    def overfit(self):
        """2. Overfits a few batches, at the config's rate or, if that fails, at another."""
        own = self._config.optimizer.lr
        rungs = self.phases["overfit"].plan("lengths", self._lengths.sample)
        tries = {own: self._try_sample(own, rungs)}
        # The first trial compiles, so that it tells the time of a step and not that of a start.
        self._refuse_without_time(starts=0, steps=(len(DECADES) + 1) * LR_STEPS[0] + 5 * LR_STEPS[1])
        if not tries[own].learned:
            for rate in self._other_decades():
                tries[rate] = self._try_sample(rate, rungs[:1])
            sound = sorted((rate for rate in tries if not tries[rate].failed), key=lambda rate: tries[rate].train_loss)
            for rate in sound[:TRIED_LONGER]:
                tries[rate] = self._try_sample(rate, rungs)
                if tries[rate].learned:
                    break
        self.phases["overfit"].finish()
        fits = [rate for rate, outcome in tries.items() if outcome.learned]
        summary = f"{self._sample_size} images are not memorised at any learning rate"
        if fits:
            summary = f"{self._sample_size} images memorised at lr {fits[0]:g} in {tries[fits[0]].steps} steps"
        findings = checks.overfit(tries, own_lr=own, num_classes=self.experiment.num_classes)
        self._write(2, "overfit", "Overfit a small sample", summary, findings, rates=fits)

    def _try_sample(self, rate, rungs) -> Outcome:
        phase, before = self.phases["overfit"], math.inf
        phase.grid([{"lr": rate, "weight_decay": 0.0}], group=f"{rate:g}")
        for steps in rungs:
            [trial] = phase.begin(f"{rate:g}", steps, tell=self._tell)
            outcome = trial.last
            if outcome.failed or outcome.learned or not outcome.train_loss < 0.98 * before:
                break
            before = outcome.train_loss
        return outcome

    def learning_rate(self):
        """3. Finds the largest rate whose loss falls clearly in a hundred steps, on all data, at a small decay."""
        phase, own = self.phases["lr"], self._config.optimizer.lr
        phase.grid(_small_decay(*self._other_decades(), own), group="decades")
        first, steps = phase.plan("lengths", self._lengths.rates)
        decades = phase.begin("decades", first, tell=self._tell)
        self._refuse_without_time(starts=5, steps=5 * steps)
        best = max(decades, key=lambda trial: search.rank(trial, lambda outcome: -outcome.train_loss)).point["lr"]
        phase.grid(_small_decay(_round(best * HALF_A_DECADE), _round(best / HALF_A_DECADE)), group="between")
        near = [trial for trial in decades if 0.09 < trial.point["lr"] / best < 11 or trial.point["lr"] == own]
        longer = [*phase.go_on(near, steps, tell=self._tell), *phase.begin("between", steps, tell=self._tell)]
        outcomes = {trial.point["lr"]: trial.last for trial in longer}

        guess = chance_loss(self._config.loss.name, num_classes=self.experiment.num_classes)
        start = min(float(self._probed["zero_loss"]), guess)
        chosen, drops = checks.choose_rate(outcomes, start=start)
        rates = (self.study.step("overfit") or {}).get("rates", [])
        findings = checks.learning(
            outcomes,
            own_lr=own,
            chosen=chosen,
            start=start,
            without=self._try_without((rates or [own])[0], steps) if chosen is None else {},
            overfits=bool(rates),
            clean=self._clean_pass(next((trial for trial in longer if trial.point["lr"] == chosen), None)),
            num_classes=self.experiment.num_classes,
        )
        if chosen is not None:
            findings += self._try_own_decay(chosen, outcomes[chosen], steps, start=start)
        phase.finish()
        said = "no rate lowers the loss clearly" if chosen is None else f"lr {chosen:g}: loss down {drops[chosen]:.0%}"
        summary = f"{said} in {steps} steps ({len(phase.trials())} trials)"
        self._write(3, "lr", "Learning rate", summary, findings, chosen=None if chosen is None else {"lr": chosen})

    def _try_without(self, rate, steps) -> dict[str, Outcome]:
        """Trains on all data without augmentation, and without a regulariser: does one of them hinder learning?"""
        return {cause: self._try_alone(phase, rate, steps) for cause, phase in WITHOUT.items() if self._has(cause)}

    def _has(self, cause):
        return cause == "augmentation" or self._config.regularizer.name != "none"

    def _try_alone(self, name, rate, steps) -> Outcome:
        phase = self.phases[name]
        phase.grid(_small_decay(rate), group=name)
        [trial] = phase.begin(name, steps, tell=self._tell)
        phase.finish()
        return trial.last

    def _clean_pass(self, trial) -> CleanPass | None:
        """The clean pass of `trial`; None if it failed or runs on another machine."""
        workdir = trials.folder(self.study.workdir, trial.workdir) if trial else None
        if not trial or trial.last.failed or not workdir.exists():
            return None
        return trials.clean_pass(workdir_lib.read_config(workdir), workdir, shared=self._shared)

    def _try_own_decay(self, rate, small, steps, *, start) -> list[Finding]:
        """Tries the config's decay too, if it is beyond the grid of step 4."""
        phase, decay = self.phases["lr"], self._config.optimizer.weight_decay
        if decay <= 3 * max(self._decays):
            return []
        phase.grid([{"lr": rate, "weight_decay": decay}], group="own decay")
        [own] = phase.begin("own decay", steps, tell=self._tell)
        return checks.decay(own.last, small, decay=decay, start=start)

    def coarse(self):
        """4. A grid of rates and decays, each for an epoch or less; the best third trains three times as long."""
        phase = self.phases["search"]
        found = self.study.step("lr") or {"chosen": self._own_point(), "findings": []}
        if found["chosen"] is None and not self._rates:
            raise ConfigError("step 3 found no rate that lowers the loss; fix what it reports, in a new --workdir")
        rates = self._rates or [_round(factor * found["chosen"]["lr"]) for factor in AROUND]
        points = [{"lr": rate, "weight_decay": decay} for rate in rates for decay in self._decays]
        if not found["findings"] and not self._rates and self._own_point() not in points:
            points.append(self._own_point())
        runs, cost = halving(len(points))
        longest = max(COARSE_EPOCHS * self._an_epoch, LEAST_STEPS)
        steps = self.ledger.allot(phase, "coarse", lambda: min(longest, first_rung(self.ledger.left(runs=runs), cost)))
        if not steps:
            self.ledger.refuse("coarse")
        phase.grid(points, group="coarse")
        survivors = self._halve(phase, steps, group="coarse")
        best = best_within_a_standard_error(survivors)
        summary = f"{_say(best)}, of {len(points)} points"
        numbers = [trial.number for trial in survivors]
        self._write(4, "coarse", "Coarse grid", summary, [], chosen=best.point, survivors=numbers, steps=LONGER * steps)

    def refine(self):
        """5. Longer runs around the winners; 7. repeats this until the budget is spent or the winner stays the same."""
        coarse = self.study.step("coarse")
        if coarse is None:
            raise ConfigError("the step 'refine' needs the winners of the coarse grid; run the step 'coarse' first")
        phase, best, carried, length, rounds = self.phases["search"], None, coarse["survivors"], coarse["steps"], 0
        while True:
            group = f"refine-{rounds + 1}"
            steps = self.ledger.allot(
                phase,
                group,
                lambda: self._refine_steps(length, carried=len(carried), rounds=rounds),  # noqa: B023
            )
            if not steps:
                break
            known = {trial.number: trial for trial in phase.trials()}
            going_on = [known[number] for number in carried]
            around = _around(best.point if best else coarse["chosen"], self._decays)
            seed = self._config.seed + 1000 * rounds
            points = phase.draw(NEW_POINTS, group=group, sampler=self._sampler, bounds=around, seed=seed)
            workdirs = [trial.workdir for trial in going_on]
            phase.grid([*(trial.point for trial in going_on), *points], group=group, continues=workdirs)
            survivors = self._halve(phase, steps, group=group)
            before, best, rounds = best, best_within_a_standard_error(survivors), rounds + 1
            carried, length = [trial.number for trial in survivors], LONGER * steps
            if before and best.point == before.point:
                break
        stopped = "the winner stays the same" if steps else self._no_more()
        ran = f"{rounds} round{'' if rounds == 1 else 's'}"
        summary = f"{_say(best)} after {ran}" if best else self._no_more()
        self._write(5, "refine", "Refine", summary, [], chosen=best.point if best else coarse["chosen"])
        self._write(7, "loop", "Go on, or stop", f"{ran} of step 5; {stopped}", [])
        self.study.save(stopped=stopped)

    def _refine_steps(self, length, *, carried, rounds) -> float:
        """Steps of a round's first rung; 0 if the budget has no room for the length of the carried trials."""
        if self.ledger.budget == UNLIMITED:
            return 0 if rounds else max(REFINE_EPOCHS * self._an_epoch, length)
        runs, cost = halving(NEW_POINTS + carried)
        fits = min(REFINE_EPOCHS * self._an_epoch, REFINE * self.ledger.left(runs=runs) / cost)
        return fits if fits >= length else 0

    def _no_more(self) -> str:
        unlimited = self.ledger.budget == UNLIMITED
        return "without a --budget there is one round" if unlimited else "the budget has no room for a longer round"

    def final(self):
        """Trains the winner with the config's schedule, for its whole length or for the rest of the budget."""
        step = self.study.step("refine") or self.study.step("coarse")
        if step is None:
            raise ConfigError("the step 'final' needs a winner to train; run the step 'coarse' first")
        phase, each = self.phases["final"], 1 / self.experiment.eval_every_steps
        point, budget = step["chosen"], self.ledger.budget.text
        group = f"{point['lr']:g} {point['weight_decay']:g} {budget}".strip()
        steps = self.ledger.allot(
            phase, group, lambda: min(self.experiment.total_steps, self.ledger.left(runs=2, evaluations_per_step=each))
        )
        before = [trial for trial in phase.trials() if trial.point == point and trial.last.steps >= steps]
        if not before:
            if not steps:
                self.ledger.refuse("final")
            phase.grid([point], group=group)
            phase.halve(group, [steps], keep=1, tell=self._tell)
        sound = [trial for trial in phase.trials() if trial.rungs and not trial.last.failed]
        if not sound:
            self.curves()
            raise LinseedError("the final run failed; fix what step 6 reports, in a new --workdir")
        winner = max(sound, key=lambda trial: _best_score(trial.last))
        outcome, epochs = winner.last, winner.last.steps / self._an_epoch
        figures = f"{outcome.best_val_accuracy:.2%}{outcome.best_beside} on validation after {epochs:.1f} epochs"
        config = self._final_config(winner, max(winner.rungs))
        self.study.save(
            winner={
                "trial": winner.id,
                **winner.point,
                "val_accuracy": outcome.best_val_accuracy,
                "beside": outcome.best_beside,
                "val_loss": outcome.val_loss,
                "epochs": epochs,
                "config_file": WINNER,
                "differences": self.study.write_winner(config, figures=figures),
            }
        )

    def curves(self):
        """6. Diagnoses the curves of the final run, or else of the longest run."""
        phase = self.phases["final" if self.phases["final"].trials() else "search"]
        found = [trial for trial in phase.trials() if trial.rungs]
        if not found:
            raise ConfigError("the step 'curves' needs a trial to look at; run the step 'coarse' first")
        trial = max(found, key=lambda trial: (trial.last.steps, search.rank(trial, search.score)))
        workdir = trials.folder(self.study.workdir, trial.workdir)
        if not workdir.exists():
            return self.writer.say(f"the curves of {trial.id} are on the machine that trained it; run 'curves' there")
        findings = curves.diagnose(
            trials.records(workdir),
            num_classes=self.experiment.num_classes,
            config=workdir_lib.read_config(workdir).to_dict(),
            stopped=trial.last.failed,
            clean=self._clean_pass(trial),
        )
        summary = f"the curves of {trial.id} show {'problems:' if findings else 'no problem'}"
        self._write(6, "curves", "Curves", summary, findings)

    # Shared by the steps.

    @functools.cached_property
    def _probed(self):
        return checks.probe(self.experiment)

    def refuse_to_begin_without_a_budget(self, name: str):
        """Raises ConfigError if the budget is spent before `name`, a step of fixed length, has begun."""
        if name in ("overfit", "lr") and self.ledger.is_spent() and not self.phases[name].trials():
            self.ledger.refuse(name)

    def refuse_without_room(self):
        """Raises ConfigError, before the first trial, if a budget of steps has no room for all steps."""
        budget = self.ledger.budget.steps
        if budget is None or any(phase.trials() for phase in self.phases.values()):
            return
        least = self._lengths.least()
        if least > budget:
            raise ConfigError(
                f"--budget={self.ledger.budget.text} has no room for every step of a study; the least that would do is "
                f"--budget={least}steps"
            )

    def _halve(self, phase, steps, *, group) -> list[Trial]:
        return phase.halve(group, [steps, LONGER * steps], keep=2, tell=self._tell)

    def _own_point(self):
        return {"lr": self._config.optimizer.lr, "weight_decay": self._config.optimizer.weight_decay}

    def _other_decades(self) -> list[float]:
        return [rate for rate in DECADES if not math.isclose(rate, self._config.optimizer.lr)]

    def _refuse_without_time(self, *, starts, steps):
        """Raises ConfigError if a budget of time has no room for the rest of this step, and for steps 4 and 6.

        starts, steps: of the trials of step 3 that are to come; starts 0 where their time is not known yet.
        """
        if self.ledger.budget.seconds is not None and not self.phases["search"].trials():
            later_starts, later_steps = self._lengths.later()
            self.ledger.refuse_without_time(starts=starts and starts + later_starts, steps=steps + later_steps)

    def _tell(self, line):
        self.writer.say(line)
        self.study.note_trials(self.phases.values(), an_epoch=self._an_epoch)
        self.study.save(steps_used=self.ledger.used_steps())

    def _write(self, number, name, title, summary, findings, **more):
        self.study.add_step(number, name, title, summary=summary, findings=findings, **more)
        self._tell(f"{number}. {title}: {summary}")
        for finding in findings:
            self.writer.say(f"   {finding}")


def _small_decay(*rates) -> list[search.Point]:
    return [{"lr": rate, "weight_decay": SMALL_DECAY} for rate in rates]


def _round(rate) -> float:
    """`rate` to three digits."""
    return float(f"{rate:.3g}")


def _around(point, decays) -> dict[str, tuple[float, float]]:
    """The bounds of step 5: half a decade of the rate, a decade of the decay, to either side of `point`."""
    decay = point["weight_decay"] or min((decay for decay in decays if decay), default=10 * SMALL_DECAY) / 10
    lr = point["lr"]
    return {"lr": (lr / HALF_A_DECADE, lr * HALF_A_DECADE), "weight_decay": (decay / 10, decay * 10)}


def _say(trial: Trial) -> str:
    point, accuracy = trial.point, f"{trial.last.val_accuracy:.2%}{trial.last.beside}"
    return f"lr {point['lr']:.3g}, decay {point['weight_decay']:.3g}: {accuracy} on validation"


def _best_score(outcome: Outcome) -> float:
    """The score of the best checkpoint; studies of earlier versions know the accuracy alone."""
    return outcome.best_val_accuracy if math.isnan(outcome.best_score) else outcome.best_score
