"""The lecture's seven steps, in order, within a budget.

1 check, 2 overfit, 3 lr, 4 coarse, 5 refine, 6 curves, and 7: back to 5, until the budget is spent or nothing gets
better. Each reads what was found before from the record and the storage, and writes what it finds before the next
begins: killed anywhere, the same command goes on. Steps 4 and 5 train at a constant rate, the final run with the
config's own schedule.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from trainer import writers
from trainer.errors import ConfigError
from trainer.experiment import Experiment, Shared
from trainer.tuning import checks, curves, search, trials
from trainer.tuning.budget import Budget
from trainer.tuning.findings import Finding
from trainer.tuning.search import Phase, Trial
from trainer.tuning import study as study_lib
from trainer.tuning.study import TRIALS, Study
from trainer.tuning.trials import Outcome

DECADES = tuple(10.0**exponent for exponent in range(1, -6, -1))  # the lecture's 1e-1 to 1e-4, and those around
SMALL_DECAY = 1e-5
COUPLED_DECAYS = (1e-3, 1e-4, 0.0)  # in the gradient
DECOUPLED_DECAYS = (1e-1, 1e-2, 0.0)  # times the learning rate

SAMPLE_BATCHES = 5  # of the sample that is to be learned by heart
SAMPLE_STEPS = (25, 100, 300)  # what stands still is given up after each
LR_STEPS = (25, 100)  # "within about a hundred iterations"
WINDOW = 5  # steps of a logged window in steps 2 and 3
COARSE, REFINE = 0.15, 0.45  # of the budget that is left, where the step begins
COARSE_EPOCHS, REFINE_EPOCHS = 1.0, 5.0  # the first rung without a budget, and at most
LEAST_STEPS = 10  # of a rung


class Procedure:
    """The steps of one study. Each method is one step, returns nothing, and leaves its findings in the study's record.

    experiment: of the config as it was given. decays: the grid of decays.
    """

    def __init__(
        self,
        study: Study,
        experiment: Experiment,
        *,
        budget: Budget | None,
        storage: Any,
        name: str,
        sampler: str,
        decays: tuple[float, ...],
        shared: Shared,
        writer: writers.Quiet,
    ):
        self.study, self.experiment, self.budget, self.writer = study, experiment, budget, writer
        self._config, self._shared, self._sampler, self._decays = study.config, shared, sampler, decays
        self._began = time.monotonic() - study.record.get("seconds_used", 0.0)
        sha256, worker = study.record["config_sha256"], study.record["worker"]

        def phase(of: str, make: Callable[[Trial, int], ml_collections.ConfigDict]) -> Phase:
            def run(trial, steps):
                workdir = study.workdir / TRIALS / trial.attributes.get("workdir", f"{of}-{trial.number:02}")
                outcome = trials.run(make(trial, steps), workdir, shared=shared)
                study.save(seconds_used=time.monotonic() - self._began)
                return outcome

            return Phase(storage, f"{name}/{of}", worker=worker, config_sha256=sha256, run=run)

        self.phases = {
            "overfit": phase("overfit", self._sample_config),
            "lr": phase("lr", lambda trial, steps: self._constant(trial.point, steps, log_every_steps=WINDOW)),
            "plain": phase("plain", self._plain_config),
            "search": phase("search", lambda trial, steps: self._constant(trial.point, steps)),
            "final": phase("final", self._final_config),
        }

    # What trials train.

    def _point(self, point: Mapping[str, float]) -> ml_collections.ConfigDict:
        return trials.changed(self._config, {f"optimizer.{key}": value for key, value in point.items()})

    def _constant(self, point, steps, *, log_every_steps=0) -> ml_collections.ConfigDict:
        an_epoch = max(1, round(len(self.experiment.train.labels) / self.experiment.batch_size))
        return trials.at_constant_rate(
            self._point(point),
            steps=steps,
            eval_every_steps=an_epoch,
            log_every_steps=log_every_steps or self._config.log_every_steps,
        )

    def _sample_config(self, trial, steps):
        """A few batches, and nothing that would keep the network from learning them by heart."""
        size = min(SAMPLE_BATCHES * self.experiment.batch_size, len(self.experiment.train.labels))
        off = {"data.train_examples": size, "data.augment": "", "data.mix": {"name": "none"}, "label_smoothing": 0.0}
        off |= {"regularizer": {"name": "none"}, "ema_decay": 0.0}
        off |= {f"model.{key}": 0.0 for key in ("dropout", "drop_path") if key in self._config.model}
        config = trials.changed(self._constant(trial.point, steps, log_every_steps=WINDOW), off)
        return trials.changed(config, {"eval.every_steps": max(SAMPLE_STEPS)})

    def _plain_config(self, trial, steps):
        config = self._constant(trial.point, steps, log_every_steps=WINDOW)
        return trials.changed(config, {"data.augment": "", "data.mix": {"name": "none"}})

    def _final_config(self, trial, steps):
        return trials.shortened(self._point(trial.point), steps=steps, total_steps=self.experiment.total_steps)

    # The budget.

    def used_steps(self) -> int:
        """Steps that trials of this study have trained, a continued one once."""
        longest = {}
        for name, phase in self.phases.items():
            for trial in phase.trials():
                place = trial.attributes.get("workdir", f"{name}-{trial.number:02}")
                longest[place] = max(longest.get(place, 0), trial.last.steps)
        return sum(longest.values())

    def _left(self, *, runs: float, per_step: float = 0.0) -> float:
        """Steps that the budget has left, after `runs` runs' worth, and `per_step` for each step, of what is no step."""
        if self.budget is None:
            return math.inf
        if self.budget.steps is not None:
            return self.budget.steps - self.used_steps()
        outcomes = [trial.last for phase in self.phases.values() for trial in phase.trials() if trial.rungs]
        sound = [outcome for outcome in outcomes if not outcome.failed and not math.isnan(outcome.step_seconds)]
        step = statistics.median(outcome.step_seconds for outcome in sound)
        other = statistics.median(outcome.seconds - outcome.steps * outcome.step_seconds for outcome in sound)
        seconds = self.budget.seconds - self.study.record.get("seconds_used", 0.0)
        return (seconds - runs * max(other, 0.0)) / (step + per_step * max(other, 0.0))

    def _allot(self, name: str, compute: Callable[[], float]) -> int:
        """The length, in steps, that was given to `name` once, so that it does not change when the command is run again."""
        allotted = self.study.record["allotted"]
        if name not in allotted:
            steps = compute()
            if steps < LEAST_STEPS:
                raise ConfigError(
                    f"--budget={self.budget.text} has no room for '{name}': {max(0, int(steps))} steps a trial, and "
                    f"{LEAST_STEPS} are the least; raise it and run the same command again, what was found is kept"
                )
            self.study.save(allotted={**allotted, name: int(steps)})
        return self.study.record["allotted"][name]

    # The steps.

    def check(self):
        """1. The loss before training: that of a network with no opinion, more with the regulariser."""
        measured = checks.probe(self.experiment)
        findings, numbers = checks.initial_loss(measured, self.experiment.state.params)
        summary = f"{numbers['initial loss']:.4f}; a network with no opinion has {numbers['expected']:.4f}"
        if numbers["with the regulariser"] > numbers["initial loss"]:
            summary += f"; the regulariser raises it to {numbers['with the regulariser']:.4f}"
        self._write(1, "check", "Initial loss", summary=summary, findings=findings, numbers=numbers)

    def overfit(self):
        """2. A few batches are learned by heart, at the config's rate or, where that fails, at another."""
        phase, own = self.phases["overfit"], self._config.optimizer.lr
        tries = {own: self._try_sample(own, SAMPLE_STEPS)}
        if not tries[own].learned:
            for rate in DECADES:
                tries.setdefault(rate, self._try_sample(rate, SAMPLE_STEPS[:1]))
            sound = sorted((rate for rate in tries if not tries[rate].failed), key=lambda rate: tries[rate].train_loss)
            for rate in sound[:3]:
                tries[rate] = self._try_sample(rate, SAMPLE_STEPS)
                if tries[rate].learned:
                    break
        fits = [rate for rate, outcome in tries.items() if outcome.learned]
        summary = f"{self._sample_size()} images are not learned by heart"
        if fits:
            summary = f"{self._sample_size()} images learned by heart at {fits[0]:g} in {tries[fits[0]].steps} steps"
        phase.finish()
        findings = checks.overfit(tries, own_lr=own, num_classes=self.experiment.num_classes)
        self._write(2, "overfit", "Overfit a small sample", summary=summary, findings=findings, rates=fits)

    def _try_sample(self, rate, rungs) -> Outcome:
        phase, group = self.phases["overfit"], f"{rate:g}"
        phase.grid([{"lr": rate, "weight_decay": 0.0}], group=group)
        trial, before = phase.claim(group)[0], math.inf
        for steps in rungs:
            outcome = phase.advance(trial, steps, tell=self.writer.say)
            if outcome.failed or outcome.learned or not outcome.train_loss < 0.98 * before:
                break
            before = outcome.train_loss
        return outcome

    def learning_rate(self):
        """3. The largest rate at which the loss falls clearly and steadily within a hundred steps, on all data."""
        phase, own = self.phases["lr"], self._config.optimizer.lr
        phase.grid(_rates(DECADES, own), group="decades")
        short = self._scaled(LR_STEPS[0])
        decades = phase.claim("decades")
        for trial in decades:
            phase.advance(trial, short, tell=self.writer.say)
        decades = phase.claim("decades")
        best = max(decades, key=lambda trial: search.rank(trial, _falls)).point["lr"]
        phase.grid(_rates([best * 10**0.5, best / 10**0.5], None), group="between")
        near = [trial for trial in decades if 0.09 < trial.point["lr"] / best < 11 or trial.point["lr"] == own]
        steps = self._scaled(LR_STEPS[1])
        tried = [*near, *phase.claim("between")]
        for trial in tried:
            phase.advance(trial, steps, tell=self.writer.say)
        numbers = {trial.number for trial in tried}
        outcomes = {trial.point["lr"]: trial.last for trial in phase.trials() if trial.number in numbers}
        every = {trial.point["lr"]: trial.last for trial in phase.trials()}

        start = float(checks.probe(self.experiment)["zero_loss"])
        chosen, drops = checks.choose_rate(outcomes, start=start)
        findings, plain = [], {}
        if chosen is None:
            plain = self._try_plain(steps)
            self.phases["plain"].finish()
        findings = checks.learning(
            outcomes,
            own_lr=own,
            chosen=chosen,
            start=start,
            plain=plain,
            overfits=bool((self.study.step("overfit") or {}).get("rates")),
            num_classes=self.experiment.num_classes,
        )
        if chosen is not None:
            findings += self._try_own_decay(chosen, steps, start=start)
        phase.finish()
        summary = (
            "no rate lets the loss fall clearly" if chosen is None else f"{chosen:g}: loss down {drops[chosen]:.0%}"
        )
        self._write(
            3,
            "lr",
            "Learning rate",
            summary=f"{summary} in {steps} steps, of {len(every)} rates tried",
            findings=findings,
            chosen=None if chosen is None else {"lr": chosen},
        )

    def _try_plain(self, steps) -> dict[float, Outcome]:
        """Rates that learned the sample, on all data without augmentation: is it the augmentation?"""
        phase = self.phases["plain"]
        rates = (self.study.step("overfit") or {}).get("rates") or [self._config.optimizer.lr]
        phase.grid(_rates(rates[:1], None), group="plain")
        return {trial.point["lr"]: phase.advance(trial, steps, tell=self.writer.say) for trial in phase.claim("plain")}

    def _try_own_decay(self, rate, steps, *, start) -> list[Finding]:
        """A decay beyond the grid of step 4 is tried beside the small one of step 3."""
        phase, decay = self.phases["lr"], self._config.optimizer.weight_decay
        if decay <= 3 * max(self._decays):
            return []
        phase.grid([{"lr": rate, "weight_decay": decay}], group="own decay")
        own = phase.advance(phase.claim("own decay")[0], steps, tell=self.writer.say)
        small = next(t.last for t in phase.trials() if t.point == {"lr": rate, "weight_decay": SMALL_DECAY})
        return checks.decay(own, small, decay=decay, start=start)

    def coarse(self):
        """4. A few rates around that of step 3, by a few decays, for an epoch or less; the best third for three times that."""
        phase = self.phases["search"]
        rate = self._chosen_rate()
        points = [
            {"lr": factor * rate, "weight_decay": decay}
            for factor in (10**-0.5, 1.0, 10**0.5)
            for decay in self._decays
        ]
        trials_run, thirds = len(points), len(points) // search.KEEP
        first = self._allot(
            "coarse",
            lambda: min(
                COARSE_EPOCHS * self._epoch(),
                COARSE * self._left(runs=trials_run + thirds) / (trials_run + 2 * thirds),
            ),
        )
        phase.grid(points, group="coarse")
        survivors = phase.halve(
            [first, 3 * first], groups=["coarse"], keep=2, score=search.val_accuracy, tell=self._tell
        )
        best = search.best_within_a_standard_error(survivors)
        self._write(
            4, "coarse", "Coarse grid", findings=[], chosen=best.point, survivors=[trial.number for trial in survivors],
            steps=3 * first, summary=f"{_say(best)} of {len(points)} points",
        )  # fmt: skip

    def refine(self):
        """5. and 7. Longer runs around the winners, until the budget is spent or the winner stays the same."""
        before = self.study.step("coarse")
        if before is None:
            raise ConfigError("refine goes on from the winners of the coarse grid; run the step 'coarse' first")
        phase, rounds = self.phases["search"], []
        carried, length = before["survivors"], before["steps"]
        while True:
            number = len(rounds) + 1
            new = 4
            runs = new + len(carried) + 2 + 2
            cost = new + 2 * 2  # in units of the first rung; the carried ones have most of it behind them
            share = REFINE if self.budget is not None else 1.0

            def compute(cost=cost, runs=runs, share=share, length=length):
                fits = min(REFINE_EPOCHS * self._epoch(), share * self._left(runs=runs) / cost)
                return fits if fits >= length else 0

            steps = self.study.record["allotted"].get(f"refine-{number}")
            if steps is None:
                steps = int(compute()) if number == 1 or self.budget is not None else 0
                self.study.save(allotted={**self.study.record["allotted"], f"refine-{number}": steps})
            if not steps:
                break
            chosen = rounds[-1].point if rounds else before["chosen"]
            group = f"refine-{number}"
            known = {trial.number: trial for trial in phase.trials()}
            phase.grid(
                [known[place].point for place in carried],
                group=group,
                continues=[known[place].attributes.get("workdir", f"search-{place:02}") for place in carried],
            )
            phase.sample(
                new, group=group, sampler=self._sampler, bounds=_around(chosen, self._decays), seed=self._config.seed
            )
            survivors = phase.halve(
                [steps, 3 * steps], groups=[group], keep=2, score=search.val_accuracy, tell=self._tell
            )
            rounds.append(search.best_within_a_standard_error(survivors))
            carried, length = [trial.number for trial in survivors], 3 * steps
            if len(rounds) > 1 and rounds[-1].point == rounds[-2].point:
                break
        best = rounds[-1] if rounds else None
        chosen = best.point if best else before["chosen"]
        said = f"{_say(best)} after {len(rounds)} rounds" if best else "the budget has no room for longer runs"
        self._write(5, "refine", "Refine", summary=said, findings=[], chosen=chosen)

    def final(self):
        """The winner with the config's own schedule, for its whole length or for what the budget has left."""
        step = self.study.step("refine") or self.study.step("coarse")
        an_evaluation = 1 / max(1, self.experiment.eval_every_steps)
        steps = self._allot(
            "final", lambda: min(self.experiment.total_steps, self._left(runs=2, per_step=an_evaluation))
        )
        phase = self.phases["final"]
        phase.grid([step["chosen"]], group="final")
        survivors = phase.halve([steps], groups=["final"], keep=1, score=search.val_accuracy, tell=self._tell)
        winner = search.best_within_a_standard_error(survivors)
        config = self._final_config(winner, steps)
        outcome, epochs = winner.last, steps / self._epoch()
        figures = f"{outcome.best_val_accuracy:.2%} on validation after {epochs:.1f} epochs"
        differences = self.study.write_winner(config, figures=figures)
        self.study.save(
            winner={
                "trial": f"final-{winner.number:02}",
                **winner.point,
                "val_accuracy": outcome.best_val_accuracy,
                "val_loss": outcome.val_loss,
                "epochs": epochs,
                "config_file": study_lib.WINNER,
                "differences": differences,
            }
        )

    def curves(self):
        """6. What the curves of the final run, or of the best run so far, show."""
        name = "final" if self.phases["final"].trials() else "search"
        found = [trial for trial in self.phases[name].trials() if trial.rungs]
        if not found:
            raise ConfigError("there is no run to look at yet; run the step 'coarse' first")
        trial = max(found, key=lambda trial: (trial.last.steps, search.rank(trial, search.val_accuracy)))
        place = trial.attributes.get("workdir", f"{name}-{trial.number:02}")
        findings = curves.diagnose(
            trials.records(self.study.workdir / TRIALS / place),
            num_classes=self.experiment.num_classes,
            config=self._config.to_dict(),
            stopped=trial.last.failed,
        )
        summary = f"the curves of {place} show nothing wrong" if not findings else f"the curves of {place} show"
        self._write(6, "curves", "Curves", summary=summary, findings=findings)

    # What is written down.

    def _write(self, number, name, title, *, summary, findings, **more):
        self.study.save(seconds_used=time.monotonic() - self._began)
        self.study.add_step(number, name, title, summary=summary, findings=findings, **more)
        self._note_trials()
        self.writer.say(f"{number}. {title}: {summary}")
        for finding in findings:
            self.writer.say(f"   {finding}")

    def _tell(self, line):
        self.writer.say(line)
        self._note_trials()

    def _note_trials(self):
        """The trials as the page shows them."""
        entries = []
        for name, phase in self.phases.items():
            for trial in phase.trials():
                group = trial.attributes.get("group", name)
                entries.append(
                    {
                        "id": f"{name}-{trial.number:02}",
                        "phase": group.partition("-")[0] if name == "search" else name,
                        "workdir": trial.attributes.get("workdir", f"{name}-{trial.number:02}"),
                        **trial.point,
                        "seed": self._config.seed,
                        "schedule": self._config.schedule.name if name == "final" else "constant",
                        "state": STATES[trial.state.name],
                        "reason": trial.attributes.get("reason", trial.last.failed),
                        "rungs": [
                            {"steps": steps, "epochs": steps / self._epoch(), **outcome._asdict()}
                            for steps, outcome in sorted(trial.rungs.items())
                        ],
                        "seconds": trial.last.seconds,
                    }
                )
        self.study.save(trials=entries, steps_used=self.used_steps())

    def _chosen_rate(self):
        found = self.study.step("lr")
        if found is None:
            return self._config.optimizer.lr
        if found["chosen"] is None:
            raise ConfigError(
                "step 3 found no rate at which the loss falls; see its findings, mend the cause, begin anew"
            )
        return found["chosen"]["lr"]

    def _epoch(self) -> float:
        return len(self.experiment.train.labels) / self.experiment.batch_size

    def _sample_size(self) -> int:
        return min(SAMPLE_BATCHES * self.experiment.batch_size, len(self.experiment.train.labels))

    def _scaled(self, steps) -> int:
        """`steps` of step 3, fewer where the budget is small."""
        if self.budget is None or self.budget.steps is None:
            return steps
        return max(LEAST_STEPS, min(steps, round(steps * self.budget.steps / 3000)))


STATES = {"WAITING": "running", "RUNNING": "running", "COMPLETE": "complete", "PRUNED": "dropped", "FAIL": "failed"}


def _rates(rates, own) -> list[dict[str, float]]:
    """Points of these rates with a small decay; `own` among them once."""
    near = [rate for rate in rates if own is None or not math.isclose(rate, own)]
    return [{"lr": rate, "weight_decay": SMALL_DECAY} for rate in [*near, *([] if own is None else [own])]]


def _falls(outcome: Outcome) -> float:
    return -outcome.train_loss


def _around(point, decays) -> dict[str, tuple[float, float]]:
    """The neighbourhood that step 5 samples: half a decade of the rate, a decade of the decay to either side."""
    least = min(decay for decay in decays if decay)
    decay = point["weight_decay"] or least / 10
    return {"lr": (point["lr"] / 10**0.5, point["lr"] * 10**0.5), "weight_decay": (decay / 10, decay * 10)}


def _say(trial: Trial) -> str:
    return (
        f"lr {trial.point['lr']:.3g}, decay {trial.point['weight_decay']:.3g}: "
        f"{trial.last.val_accuracy:.2%} on validation"
    )
