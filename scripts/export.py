"""Writes a run's network to one file: to predict with anywhere, or its weights for timm and for other runs.

linseed export --workdir=runs/finetune --out=model.linseed
linseed export --workdir=runs/finetune --out=weights.safetensors
linseed export --workdir=runs/study/trials/final-0 --workdir=runs/study/trials/final-1 --out=soup.safetensors

Several runs of one network become a greedy soup: the mean of their weights, as far as validation gains by it.
"""

from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache

WORKDIR = command.define_path(
    "workdir", None, "Folder of the run. Repeat it for more runs: a greedy soup of them is written.", many=True
)
WHICH = flags.DEFINE_enum(
    "which", "best", ["best", "latest", "ema"], "best: the best weights on validation; latest; ema: moving average."
)
OUT = command.define_path(
    "out", None, "The file to write: .linseed, a model for `linseed predict`; .safetensors, weights under timm's names."
)

flags.register_validator(
    "workdir", lambda folders: folders is None or all(folders), message="is empty; name the folder of a run"
)
flags.register_validator(
    "out",
    lambda path: path is None or path.endswith((".linseed", ".safetensors")),
    message="should end in .linseed or .safetensors",
)


def main(console):
    workdirs, out = [Path(workdir) for workdir in WORKDIR.value], Path(OUT.value)
    command.check_folder(OUT.value, flag="out")
    compile_cache.use(workdir=workdirs[0])
    from linseed.trainer import soup

    def say(line):
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    found = soup.greedy(workdirs, which=WHICH.value, say=say)
    {".linseed": _write_model, ".safetensors": _write_weights}[out.suffix](found, out)
    runs = f"{len(found.kept)} of {len(workdirs)} runs" if len(workdirs) > 1 else str(workdirs[0])
    say(f"{out}: {found.config.model.name}, {runs}, val {found.figures['accuracy']:.2%}")


def _write_model(found, out):
    from linseed.trainer import evaluation
    from linseed.trainer.portable import from_run

    experiment = found.experiment
    _, examples = evaluation.evaluate_each(experiment, experiment.parallel.replicate(found.weights), experiment.val)
    from_run.write(
        out,
        found.weights,
        config=found.config,
        experiment=experiment,
        temperature=examples.temperature,
        result=from_run.result_of(found.kept[0], found.weights, val=found.figures),
        workdir=found.kept[0],
    )


def _write_weights(found, out):
    from linseed.trainer.weights import export

    export.write(
        found.weights,
        out,
        model=found.experiment.model,
        config=found.config,
        statistics=found.experiment.statistics,
        class_names=found.experiment.class_names,
    )


def run():
    command.run(main, needs=("workdir", "out"))


if __name__ == "__main__":
    run()
