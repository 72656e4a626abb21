"""`tune`: takes a config through the seven steps. After a kill, the same workdir continues."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from linseed.trainer import experiment as experiment_lib
from linseed.trainer import files
from linseed.trainer.config import sections
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError, WorkdirError, unknown_name
from linseed.trainer.optim import optimizers, rules
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.runtime import signals
from linseed.trainer.tuning import first_steps, search, search_steps, space, trials
from linseed.trainer.tuning import storage as storage_lib
from linseed.trainer.tuning import study as study_lib
from linseed.trainer.tuning.budget import Budget
from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.procedure import COUPLED_DECAYS, DECOUPLED_DECAYS, Procedure
from linseed.trainer.tuning.report import page

STEPS = {
    "check": first_steps.check,
    "overfit": first_steps.overfit,
    "lr": first_steps.learning_rate,
    "coarse": search_steps.coarse,
    "refine": search_steps.refine,
    "final": search_steps.final,
    "curves": search_steps.curves,
}


def tune(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    step: str,
    budget: Budget,
    storage: str,
    study: str,
    sampler: str,
    rates: tuple[float, ...],
    decays: tuple[float, ...],
    name: str,
    writer: Quiet,
    further: Sequence[str] | None = None,
    shared: experiment_lib.Shared | None = None,
    stop: Callable[[], int] = signals.never,
) -> dict:
    """Runs one step of `STEPS`, or "all" of them, on `config`; returns the content of `study.json`.

    budget: `UNLIMITED` gives each step its natural length. storage: an SQLAlchemy URL, "" for a file in `workdir`.
    study: the name of the study in the storage. sampler: a key of `search.SAMPLERS`. rates, decays: the grid of step 4;
    () for rates around the one of step 3, and for decays that suit the optimiser. name: the config's name on the page.
    further: the `--search` flags, see `space.read`; None for those that the study in `workdir` began with, or that suit
    the config. shared, stop: as for `train_and_evaluate`. Raises LinseedError for errors that the user can fix. Results
    are kept, and the same call continues.
    """
    if step not in (*STEPS, "all"):
        raise ConfigError(unknown_name("step", step, (*STEPS, "all")))
    if sampler not in search.SAMPLERS:
        raise ConfigError(unknown_name("--sampler", sampler, search.SAMPLERS))
    config = resolve(config)
    if "weight_decay" not in config.optimizer:
        raise ConfigError(
            f"config.optimizer.name='{config.optimizer.name}' has no weight decay to tune; choose another, such as sgd"
        )
    if not config.data.batch_size:
        raise ConfigError("tune needs mini-batches, config.data.batch_size=0 takes all of train; set it above 0")
    if all(rules.parse(rule).frozen for rule in config.optimizer.rules):
        raise ConfigError(
            "config.optimizer.rules freeze all weights, so that there is nothing to tune (a probe fits its last layer "
            "itself: run it by `linseed train`); tune a config that trains some, such as the page finetune"
        )
    if further is None and (further := study_lib.searched(workdir)) is None:
        further = space.suited(config)
    further = [text for text in further if text]
    drawn, horizons = space.read(further, config)
    if not decays:
        decays = DECOUPLED_DECAYS if _decouples(config) else COUPLED_DECAYS
    _check_grid(rates, decays)
    with workdir_lib.lock(workdir):
        search_space = {"rates": list(rates), "decays": list(decays), "sampler": sampler}
        search_space |= {study_lib.SEARCH: further} if further else {}
        record = study_lib.Study(workdir, config, name=name, search_space=search_space)
        own = workdir / study_lib.STORAGE
        if record.record["trials"] and not (own.exists() and own.stat().st_size):
            raise WorkdirError(
                f"{own} is lost, and the trials of {study_lib.STUDY} with it; put back a copy of it, or choose another "
                "--workdir"
            )
        shared = shared or experiment_lib.Shared()
        files.make(workdir / trials.UNTRAINED)
        experiment = experiment_lib.build(config, workdir / trials.UNTRAINED, shared=shared)
        writer.say(experiment.description)
        if not record.record["trials"]:
            _check_fits(config, drawn, workdir, shared=shared)
        record.save(budget=budget.text or None)  # not before: what was refused so far may come back changed
        if further:
            writer.say(f"searches rate, decay and {'; '.join(further)}")
        with contextlib.ExitStack() as stack:
            own_storage = stack.enter_context(storage_lib.open_storage(f"sqlite:///{own.absolute()}"))
            record.record["worker"] = storage_lib.remembered_worker(own_storage, record.record["worker"])
            procedure = Procedure(
                record,
                experiment,
                budget=budget,
                storage=stack.enter_context(storage_lib.open_storage(storage)) if storage else own_storage,
                own_storage=own_storage,
                name=study,
                sampler=sampler,
                rates=rates,
                decays=decays,
                space=drawn,
                horizons=horizons,
                shared=shared,
                writer=writer,
                stop=stop,
            )
            stack.callback(_conclude, record)
            if step == "all":
                procedure.refuse_without_room()
            for each in STEPS if step == "all" else [step]:
                procedure.refuse_to_begin_without_a_budget(each)
                STEPS[each](procedure)
                if step == "all" and each == "lr" and record.step("lr")["chosen"] is None and not rates:
                    break
    return record.record


def _check_grid(rates, decays):
    if any(not 0 < rate < math.inf for rate in rates) or any(not 0 <= decay < math.inf for decay in decays):
        raise ConfigError("--rates should be above 0, --decays at least 0, and all of them finite")
    if len(set(rates)) == 1 and len(set(decays)) == 1:
        raise ConfigError(
            f"--rates={rates[0]:g} with --decays={decays[0]:g} leaves nothing to choose; give two values of one flag, "
            "or leave one flag out"
        )


def _check_fits(config, drawn, workdir, *, shared):
    """Raises ConfigError if a further key of the network has a value that does not fit the images."""
    for key, axis in drawn.items():
        for value in axis.ends if key.startswith("model.") else ():
            try:
                experiment_lib.check_fits(changed(config, {key: value}), workdir / trials.UNTRAINED, shared=shared)
            except ConfigError as error:
                raise ConfigError(f"--search={key}: {error}") from None


def _decouples(config):
    name = config.optimizer.name
    keys = sections.parameters("optimizer", name).keys() - {"optimizer.lr"}
    return optimizers.decouples_decay(name, **{key.removeprefix("optimizer."): config[key] for key in keys})


def _conclude(record):
    """Saves the verdict and the next commands, and writes the page."""
    winner, findings = record.record.get("winner"), []
    for step in record.record["steps"]:
        findings += step["findings"]
    # Once there is a winner, only the problems of its own curves are open.
    open_findings = (record.step("curves") or {}).get("findings", []) if winner else findings
    following = list(dict.fromkeys(finding["remedy"] for finding in open_findings))
    if winner:
        path = record.workdir / study_lib.WINNER
        point = {key: winner[key] for key in space.RATE_AND_DECAY} | winner.get("further", {})
        verdict = (
            f"{space.say(point)} reach {winner['val_accuracy']:.2%} "
            f"validation accuracy{winner.get('beside', '')} after {winner['epochs']:.1f} epochs."
        )
        following.insert(0, f"linseed train --config={path} --workdir=runs/winner")
    else:
        verdict = "There is no winner yet."
    causes = list(dict.fromkeys(CAUSES[finding["cause"]] for finding in findings))
    verdict += f" Problems found: {'; '.join(causes)}." if causes else " No problem was found."
    record.save(verdict=verdict, next=following)
    workdirs = {trial["id"]: trials.folder(record.workdir, trial["workdir"]) for trial in record.record["trials"]}
    page.write(
        record.workdir / study_lib.PAGE,
        record.record,
        {name: trials.records(workdir) for name, workdir in workdirs.items() if workdir.exists()},
    )
