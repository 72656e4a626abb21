"""`tune`: a config through the seven steps, in a workdir that can be killed and continued."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import ml_collections

from linseed.trainer import experiment as experiment_lib
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError, unknown_name
from linseed.trainer.optim import optimizers
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.runtime import signals
from linseed.trainer.tuning import search, trials
from linseed.trainer.tuning import study as study_lib
from linseed.trainer.tuning.budget import Budget
from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.procedure import COUPLED_DECAYS, DECOUPLED_DECAYS, Procedure
from linseed.trainer.tuning.report import page

# What an optimiser's section holds for `make_tx` itself, beside the parameters of its entry.
MAKE_TX = ("lr", "lr_per_batch", "clip", "clip_norm", "rules")

STEPS = {
    "check": Procedure.check,
    "overfit": Procedure.overfit,
    "lr": Procedure.learning_rate,
    "coarse": Procedure.coarse,
    "refine": Procedure.refine,
    "final": Procedure.final,
    "curves": Procedure.curves,
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
    stop: Callable[[], int] = signals.never,
) -> dict:
    """Takes `config` through one step of `STEPS`, or "all" of them; returns what `study.json` holds.

    budget: `UNLIMITED` for the natural length of each step. storage: an SQLAlchemy URL, "" for a file in `workdir`;
    study: the name of the study in it. sampler: of `search.SAMPLERS`. rates, decays: the grid of step 4, () for those
    around the rate of step 3 and those that suit the optimiser. name: of the config, for the page. stop: as for
    `train_and_evaluate`. Raises a LinseedError for all that a user can mend; what was found before is kept, and the
    same call goes on.
    """
    if step not in (*STEPS, "all"):
        raise ConfigError(unknown_name("step", step, (*STEPS, "all")))
    if sampler not in search.SAMPLERS:
        raise ConfigError(unknown_name("--sampler", sampler, search.SAMPLERS))
    config = resolve(config)
    if "weight_decay" not in config.optimizer:
        raise ConfigError(
            f"'{config.optimizer.name}' has no rate and decay to search for; choose another config.optimizer.name"
        )
    if not config.data.batch_size:
        raise ConfigError("the steps are about mini-batches; set config.data.batch_size above 0")
    if not decays:
        decays = DECOUPLED_DECAYS if _decouples(config) else COUPLED_DECAYS
    _check_grid(rates, decays)
    with workdir_lib.lock(workdir):
        search_space = {"rates": list(rates), "decays": list(decays), "sampler": sampler}
        record = study_lib.Study(workdir, config, name=name, search_space=search_space)
        record.save(budget=budget.text or None)
        shared = experiment_lib.Shared()
        with tempfile.TemporaryDirectory() as folder:
            experiment = experiment_lib.build(config, Path(folder), shared=shared)
        writer.say(experiment.description)
        own_storage = search.open_storage(f"sqlite:///{(workdir / study_lib.STORAGE).absolute()}")
        procedure = Procedure(
            record,
            experiment,
            budget=budget,
            storage=search.open_storage(storage) if storage else own_storage,
            own_storage=own_storage,
            name=study,
            sampler=sampler,
            rates=rates,
            decays=decays,
            shared=shared,
            writer=writer,
            stop=stop,
        )
        try:
            for each in STEPS if step == "all" else [step]:
                procedure.refuse_to_begin_without_a_budget(each)
                STEPS[each](procedure)
                if step == "all" and each == "lr" and record.step("lr")["chosen"] is None and not rates:
                    break
        finally:
            _conclude(record)
    return record.record


def _check_grid(rates, decays):
    if any(not 0 < rate < math.inf for rate in rates) or any(not 0 <= decay < math.inf for decay in decays):
        raise ConfigError("--rates should be above 0 and --decays at least 0, and all of them finite")
    if len(set(rates)) == 1 and len(set(decays)) == 1:
        raise ConfigError(
            f"a grid of one point, --rates={rates[0]:g} and --decays={decays[0]:g}, leaves nothing to choose; give two "
            "of one, or leave one out"
        )


def _decouples(config):
    optimizer = {key: value for key, value in config.optimizer.items() if key not in MAKE_TX}
    return optimizers.decouples_decay(**optimizer)


def _conclude(record):
    """The verdict in words, what to do next, and the page."""
    winner, findings = record.record.get("winner"), []
    for step in record.record["steps"]:
        findings += step["findings"]
    # What the winner has mended needs no mending.
    open_findings = (record.step("curves") or {}).get("findings", []) if winner else findings
    following = list(dict.fromkeys(finding["remedy"] for finding in open_findings))
    if winner:
        path = record.workdir / study_lib.WINNER
        verdict = (
            f"lr {winner['lr']:.3g} and decay {winner['weight_decay']:.3g} reach {winner['val_accuracy']:.2%} on "
            f"validation after {winner['epochs']:.1f} epochs."
        )
        following.insert(0, f"python -m scripts.train --config={path} --workdir=runs/winner")
    else:
        verdict = "There is no winner yet."
    causes = list(dict.fromkeys(CAUSES[finding["cause"]] for finding in findings))
    verdict += f" On the way: {'; '.join(causes)}." if causes else " Nothing was found to be wrong."
    record.save(verdict=verdict, next=following)
    workdirs = {trial["id"]: record.workdir / study_lib.TRIALS / trial["workdir"] for trial in record.record["trials"]}
    page.write(
        record.workdir / study_lib.PAGE,
        record.record,
        {name: trials.records(workdir) for name, workdir in workdirs.items() if workdir.exists()},
    )
