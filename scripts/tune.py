"""Tunes a config in the lecture's seven steps of choosing hyperparameters; run it again to go on.

linseed tune --config=digits --workdir=runs/tune --budget=10m

Instead of `all`, name one step: check, overfit, lr, coarse, refine, final, curves. Signals and exit statuses are as in
`scripts.train`: the current trial is saved, and the same command continues it.
"""

from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache, config_flag

WORKDIR = command.define_path("workdir", None, "Folder of this study: trials, study.json, study.html, winner.py.")
BUDGET = flags.DEFINE_string(
    "budget", None, "Wall time (90s, 30m, 2h) or train steps (4000steps); none: each step's natural length."
)
STORAGE = flags.DEFINE_string(
    "storage", "", "SQLAlchemy URL, for several machines to share a study; none: a file in --workdir."
)
STUDY = flags.DEFINE_string("study", "study", "Name of the study in --storage.")
RATES = flags.DEFINE_list("rates", [], "Learning rates of step 4, comma-separated; none: around the rate of step 3.")
DECAYS = flags.DEFINE_list("decays", [], "Weight decays of step 4, comma-separated; none: they suit the optimiser.")
SEARCH = flags.DEFINE_multi_string(
    "search",
    None,
    "A further key to search: KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE; may be repeated. Without the flag: "
    "what suits the config; --search= for rate and decay alone.",
)
SAMPLER = flags.DEFINE_enum("sampler", "tpe", ["random", "tpe"], "How step 5 chooses its points.")


def main(console, step):
    workdir = Path(WORKDIR.value)
    compile_cache.use(workdir=workdir)
    from linseed.trainer.run.console import Plain
    from linseed.trainer.runtime import signals
    from linseed.trainer.tuning import budget, tune

    writer = Plain(console)
    with signals.on_signals(command.tell) as stop:
        record = tune.tune(
            config_flag.load(),
            workdir,
            step=step,
            budget=budget.parse(BUDGET.value) if BUDGET.value else budget.UNLIMITED,
            storage=STORAGE.value,
            study=STUDY.value,
            sampler=SAMPLER.value,
            rates=_numbers("rates"),
            decays=_numbers("decays"),
            name=config_flag.page_name(),
            writer=writer,
            further=SEARCH.value,
            stop=stop,
        )
    writer.say(record["verdict"])
    for line in record["next"]:
        writer.say(f"next: {line}")
    writer.say(f"page: {workdir / 'study.html'}")


def _numbers(flag):
    from linseed.trainer.errors import ConfigError

    try:
        return tuple(float(value) for value in flags.FLAGS[flag].value)
    except ValueError as error:
        raise ConfigError(f"--{flag} should be comma-separated numbers, such as 0.01,0.1: {error}") from error


def run():
    command.run(main, needs=("config", "workdir"), argument="STEP", default="all")


if __name__ == "__main__":
    run()
