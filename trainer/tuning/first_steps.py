"""Steps 1 to 3: the loss before training, a small sample to overfit, and the learning rate."""

import math

from linseed.trainer.tuning import checks, data_checks
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.floors import chance_loss
from linseed.trainer.tuning.lengths import LR_STEPS, TRIED_LONGER
from linseed.trainer.tuning.procedure import DECADES, HALF_A_DECADE, SMALL_DECAY, Procedure, to_three_digits
from linseed.trainer.tuning.ranking import rank
from linseed.trainer.tuning.space import Point
from linseed.trainer.tuning.trials import Outcome

WITHOUT = {"augmentation": "plain", "decay_too_high": "unregularised"}  # cause -> the phase that leaves it out


def check(procedure: Procedure):
    """1. The loss before training: near that of equal scores for all classes, more with the regulariser."""
    experiment = procedure.experiment
    findings, numbers = checks.initial_loss(
        procedure.probed, procedure.probed["params"], config=procedure.config, steps=experiment.total_steps
    )
    findings = data_checks.splits(experiment.train, experiment.val, leaked=experiment.leaked) + findings
    summary = f"{numbers['initial loss']:.4f}; equal scores for all classes give {numbers['expected']:.4f}"
    if numbers["with the regulariser"] > numbers["initial loss"]:
        summary += f"; the regulariser raises it to {numbers['with the regulariser']:.4f}"
    procedure.write(1, "check", "Initial loss", summary, findings, numbers=numbers)


def overfit(procedure: Procedure):
    """2. Overfits a few batches, at the config's rate or, if that fails, at another."""
    own = procedure.config.optimizer.lr
    rungs = procedure.phases["overfit"].plan("lengths", procedure.lengths.sample)
    tries = {own: _try_sample(procedure, own, rungs)}
    # The first trial compiles, so that it tells the time of a step and not that of a start.
    procedure.refuse_without_time(starts=0, steps=(len(DECADES) + 1) * LR_STEPS[0] + 5 * LR_STEPS[1])
    if not tries[own].learned:
        for rate in procedure.other_decades():
            tries[rate] = _try_sample(procedure, rate, rungs[:1])
        sound = sorted((rate for rate in tries if not tries[rate].failed), key=lambda rate: tries[rate].train_loss)
        for rate in sound[:TRIED_LONGER]:
            tries[rate] = _try_sample(procedure, rate, rungs)
            if tries[rate].learned:
                break
    procedure.phases["overfit"].finish()
    fits = [rate for rate, outcome in tries.items() if outcome.learned]
    summary = f"{procedure.configs.sample_size} images are not memorised at any learning rate"
    if fits:
        summary = f"{procedure.configs.sample_size} images memorised at lr {fits[0]:g} in {tries[fits[0]].steps} steps"
    findings = checks.overfit(tries, own_lr=own, num_classes=procedure.experiment.num_classes)
    procedure.write(2, "overfit", "Overfit a small sample", summary, findings, rates=fits)


def _try_sample(procedure, rate, rungs) -> Outcome:
    phase, before = procedure.phases["overfit"], math.inf
    phase.grid([{"lr": rate, "weight_decay": 0.0}], group=f"{rate:g}")
    for steps in rungs:
        [trial] = phase.begin(f"{rate:g}", steps, tell=procedure.tell)
        outcome = trial.last
        if outcome.failed or outcome.learned or not outcome.train_loss < 0.98 * before:
            break
        before = outcome.train_loss
    return outcome


def learning_rate(procedure: Procedure):
    """3. Finds the largest rate whose loss falls clearly in a hundred steps, on all data, at a small decay."""
    phase, own = procedure.phases["lr"], procedure.config.optimizer.lr
    phase.grid(_small_decay(*procedure.other_decades(), own), group="decades")
    first, steps = phase.plan("lengths", procedure.lengths.rates)
    decades = phase.begin("decades", first, tell=procedure.tell)
    procedure.refuse_without_time(starts=5, steps=5 * steps)
    best = max(decades, key=lambda trial: rank(trial, lambda outcome: -outcome.train_loss)).point["lr"]
    between = to_three_digits(best * HALF_A_DECADE), to_three_digits(best / HALF_A_DECADE)
    phase.grid(_small_decay(*between), group="between")
    near = [trial for trial in decades if 0.09 < trial.point["lr"] / best < 11 or trial.point["lr"] == own]
    longer = [*phase.go_on(near, steps, tell=procedure.tell), *phase.begin("between", steps, tell=procedure.tell)]
    outcomes = {trial.point["lr"]: trial.last for trial in longer}

    guess = chance_loss(procedure.config.loss.name, num_classes=procedure.experiment.num_classes)
    start = min(float(procedure.probed["zero_loss"]), guess)
    chosen, drops = checks.choose_rate(outcomes, start=start)
    rates = (procedure.study.step("overfit") or {}).get("rates", [])
    findings = checks.learning(
        outcomes,
        own_lr=own,
        chosen=chosen,
        start=start,
        without=_try_without(procedure, (rates or [own])[0], steps) if chosen is None else {},
        overfits=bool(rates),
        clean=procedure.clean_pass(next((trial for trial in longer if trial.point["lr"] == chosen), None)),
        num_classes=procedure.experiment.num_classes,
    )
    if chosen is not None:
        findings += _try_own_decay(procedure, chosen, outcomes[chosen], steps, start=start)
    phase.finish()
    said = "no rate lowers the loss clearly" if chosen is None else f"lr {chosen:g}: loss down {drops[chosen]:.0%}"
    summary = f"{said} in {steps} steps ({len(phase.trials())} trials)"
    procedure.write(3, "lr", "Learning rate", summary, findings, chosen=None if chosen is None else {"lr": chosen})


def _try_without(procedure, rate, steps) -> dict[str, Outcome]:
    """Trains on all data without augmentation, and without a regulariser: does one of them hinder learning?"""
    return {
        cause: _try_alone(procedure, phase, rate, steps) for cause, phase in WITHOUT.items() if _has(procedure, cause)
    }


def _has(procedure, cause):
    return cause == "augmentation" or procedure.config.regularizer.name != "none"


def _try_alone(procedure, name, rate, steps) -> Outcome:
    phase = procedure.phases[name]
    phase.grid(_small_decay(rate), group=name)
    [trial] = phase.begin(name, steps, tell=procedure.tell)
    phase.finish()
    return trial.last


def _try_own_decay(procedure, rate, small, steps, *, start) -> list[Finding]:
    """Tries the config's decay too, if it is beyond the grid of step 4."""
    phase, decay = procedure.phases["lr"], procedure.config.optimizer.weight_decay
    if decay <= 3 * max(procedure.decays):
        return []
    phase.grid([{"lr": rate, "weight_decay": decay}], group="own decay")
    [own] = phase.begin("own decay", steps, tell=procedure.tell)
    return checks.decay(own.last, small, decay=decay, start=start)


def _small_decay(*rates) -> list[Point]:
    return [{"lr": rate, "weight_decay": SMALL_DECAY} for rate in rates]
