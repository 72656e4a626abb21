"""Steps 4 to 7: the grid, longer runs around its winners, the final runs, and their curves."""

import json
import math

from linseed.trainer.errors import ConfigError, LinseedError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.tuning import trials
from linseed.trainer.tuning.budget import LEAST_STEPS, UNLIMITED
from linseed.trainer.tuning.diagnosis import curves as diagnosis_of_curves
from linseed.trainer.tuning.lengths import LONGER, first_rung, halving
from linseed.trainer.tuning.procedure import AROUND, HALF_A_DECADE, SMALL_DECAY, Procedure, to_three_digits
from linseed.trainer.tuning.ranking import Trial, best_within_a_standard_error, rank, score
from linseed.trainer.tuning.space import RATE_AND_DECAY, Range, Space, say
from linseed.trainer.tuning.study import WINNER
from linseed.trainer.tuning.trials import Outcome

REFINE = 0.45  # of the budget that is left when a round begins
COARSE_EPOCHS, REFINE_EPOCHS = 1.0, 5.0  # of the first rung, at most
NEW_POINTS, MORE_POINTS = 4, 2  # in a round of step 5: for rate and decay, and for each further key


def coarse(procedure: Procedure):
    """4. A grid of rates and decays, each for an epoch or less; the best third trains three times as long."""
    phase, ledger = procedure.phases["search"], procedure.ledger
    found = procedure.study.step("lr") or {"chosen": procedure.own_point(), "findings": []}
    if found["chosen"] is None and not procedure.rates:
        raise ConfigError("step 3 found no rate that lowers the loss; fix what it reports, in a new --workdir")
    rates = procedure.rates or [to_three_digits(factor * found["chosen"]["lr"]) for factor in AROUND]
    points = [{"lr": rate, "weight_decay": decay} for rate in rates for decay in procedure.decays]
    if not found["findings"] and not procedure.rates and procedure.own_point() not in points:
        points.append(procedure.own_point())
    runs, cost = halving(len(points))
    longest = max(COARSE_EPOCHS * procedure.configs.an_epoch, LEAST_STEPS)
    steps = ledger.allot(phase, "coarse", lambda: min(longest, first_rung(ledger.left(runs=runs), cost)))
    if not steps:
        ledger.refuse("coarse")
    phase.grid(points, group="coarse")
    survivors = _halve(phase, steps, group="coarse", tell=procedure.tell)
    best = best_within_a_standard_error(survivors)
    summary = f"{_say(best)}, of {len(points)} points"
    numbers = [trial.number for trial in survivors]
    procedure.write(4, "coarse", "Coarse grid", summary, [], chosen=best.point, survivors=numbers, steps=LONGER * steps)


def refine(procedure: Procedure):
    """5. Longer runs around the winners; 7. repeats this until the budget is spent or the winner stays the same."""
    coarse = procedure.study.step("coarse")
    if coarse is None:
        raise ConfigError("the step 'refine' needs the winners of the coarse grid; run the step 'coarse' first")
    phase, best, carried, length, rounds = procedure.phases["search"], None, coarse["survivors"], coarse["steps"], 0
    while True:
        group = f"refine-{rounds + 1}"
        steps = procedure.ledger.allot(
            phase,
            group,
            lambda: _refine_steps(procedure, length, carried=len(carried), rounds=rounds),  # noqa: B023
        )
        if not steps:
            break
        known = {trial.number: trial for trial in phase.trials()}
        going_on = [known[number] for number in carried]
        around = _around(best.point if best else coarse["chosen"], procedure.decays)
        seed = procedure.config.seed + 1000 * rounds
        space = around | procedure.space
        points = phase.draw(_new_points(procedure), group=group, sampler=procedure.sampler, space=space, seed=seed)
        workdirs = [trial.workdir for trial in going_on]
        phase.grid([*(trial.point for trial in going_on), *points], group=group, continues=workdirs)
        survivors = _halve(phase, steps, group=group, tell=procedure.tell)
        before, best, rounds = best, best_within_a_standard_error(survivors), rounds + 1
        carried, length = [trial.number for trial in survivors], LONGER * steps
        if before and best.point == before.point:
            break
    stopped = "the winner stays the same" if steps else _no_more(procedure)
    ran = f"{rounds} round{'' if rounds == 1 else 's'}"
    summary = f"{_say(best)} after {ran}" if best else _no_more(procedure)
    procedure.write(5, "refine", "Refine", summary, [], chosen=best.point if best else coarse["chosen"])
    procedure.write(7, "loop", "Go on, or stop", f"{ran} of step 5; {stopped}", [])
    procedure.study.save(stopped=stopped)


def _refine_steps(procedure, length, *, carried, rounds) -> float:
    """Steps of a round's first rung; 0 if the budget has no room for the length of the carried trials."""
    # Of few images five epochs are shorter than the trials that are carried on, which one round has to be.
    most = max(REFINE_EPOCHS * procedure.configs.an_epoch, 0 if rounds else length)
    if procedure.ledger.budget == UNLIMITED:
        return 0 if rounds else most
    new = _new_points(procedure)
    runs, cost = halving(new + carried)
    # A further key is part of the program, which each new point compiles.
    left = procedure.ledger.left(runs=runs, compiled=new if procedure.space else 0)
    fits = min(most, REFINE * left / cost)
    return fits if fits >= length else 0


def _no_more(procedure) -> str:
    unlimited = procedure.ledger.budget == UNLIMITED
    return "without a --budget there is one round" if unlimited else "the budget has no room for a longer round"


def final(procedure: Procedure):
    """Trains the winner with the config's schedule, for each of its lengths or for the rest of the budget."""
    step = procedure.study.step("refine") or procedure.study.step("coarse")
    if step is None:
        raise ConfigError("the step 'final' needs a winner to train; run the step 'coarse' first")
    phase, point = procedure.phases["final"], step["chosen"]
    for length in procedure.final_lengths:
        _train_final(procedure, point, length)
    sound = [trial for trial in phase.trials() if trial.rungs and not trial.last.failed]
    if not sound:
        curves(procedure)
        raise LinseedError("the final run failed; fix what step 6 reports, in a new --workdir")
    winner = max(sound, key=lambda trial: _best_score(trial.last))
    outcome, epochs = winner.last, winner.last.steps / procedure.configs.an_epoch
    figures = f"{outcome.best_val_accuracy:.2%}{outcome.best_beside} on validation after {epochs:.1f} epochs"
    config = procedure.configs.final(winner, max(winner.rungs))
    procedure.study.save(
        winner={
            "trial": winner.id,
            **procedure.study.said_of(winner.point, procedure.space),
            "val_accuracy": outcome.best_val_accuracy,
            "beside": outcome.best_beside,
            "val_loss": outcome.val_loss,
            "epochs": epochs,
            "config_file": WINNER,
            "differences": procedure.study.write_winner(config, figures=figures),
        }
    )


def _train_final(procedure, point, length):
    """Trains `point` for `length` steps or the rest of the budget, unless a final run of it was as long."""
    phase, ledger, each = procedure.phases["final"], procedure.ledger, 1 / procedure.experiment.eval_every_steps
    further = [f"{key}={json.dumps(value)}" for key, value in point.items() if key not in RATE_AND_DECAY]
    if len(procedure.final_lengths) > 1:
        further.append(f"{length}steps")
    group = " ".join(filter(None, [f"{point['lr']:g} {point['weight_decay']:g}", *further, ledger.budget.text]))
    steps = ledger.allot(phase, group, lambda: min(length, ledger.left(runs=2, evaluations_per_step=each)))
    if any(trial.point == point and trial.last.steps >= steps for trial in phase.trials()):
        return
    if not steps:
        ledger.refuse("final")
    phase.grid([point], group=group)
    phase.halve(group, [steps], keep=1, tell=procedure.tell)


def curves(procedure: Procedure):
    """6. Diagnoses the curves of the winner's final run, or else of the longest run."""
    phase = procedure.phases["final" if procedure.phases["final"].trials() else "search"]
    found = [trial for trial in phase.trials() if trial.rungs]
    if not found:
        raise ConfigError("the step 'curves' needs a trial to look at; run the step 'coarse' first")
    winner = (procedure.study.record.get("winner") or {}).get("trial")
    trial = max(found, key=lambda trial: (trial.id == winner, trial.last.steps, rank(trial, score)))
    workdir = trials.folder(procedure.study.workdir, trial.workdir)
    if not workdir.exists():
        return procedure.writer.say(f"the curves of {trial.id} are on the machine that trained it; run 'curves' there")
    findings = diagnosis_of_curves.diagnose(
        trials.records(workdir),
        num_classes=procedure.experiment.num_classes,
        config=workdir_lib.read_config(workdir).to_dict(),
        stopped=trial.last.failed,
        clean=procedure.clean_pass(trial),
    )
    summary = f"the curves of {trial.id} show {'problems:' if findings else 'no problem'}"
    procedure.write(6, "curves", "Curves", summary, findings)


def _new_points(procedure) -> int:
    return NEW_POINTS + MORE_POINTS * len(procedure.space)


def _around(point, decays) -> Space:
    """The rates and decays of step 5: half a decade of the rate, a decade of the decay, to either side of `point`."""
    decay = point["weight_decay"] or min((decay for decay in decays if decay), default=10 * SMALL_DECAY) / 10
    lr = point["lr"]
    return {
        "lr": Range(lr / HALF_A_DECADE, lr * HALF_A_DECADE, log=True),
        "weight_decay": Range(decay / 10, decay * 10, log=True),
    }


def _halve(phase, steps, *, group, tell) -> list[Trial]:
    return phase.halve(group, [steps, LONGER * steps], keep=2, tell=tell)


def _say(trial: Trial) -> str:
    return f"{say(trial.point)}: {trial.last.val_accuracy:.2%}{trial.last.beside} on validation"


def _best_score(outcome: Outcome) -> float:
    """The score of the best checkpoint; studies of earlier versions know the accuracy alone."""
    return outcome.best_val_accuracy if math.isnan(outcome.best_score) else outcome.best_score
