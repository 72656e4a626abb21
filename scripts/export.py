"""Writes a run's weights to a file of safetensors: for timm, and for runs that start from them.

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
OUT = command.define_path("out", None, "The file to write, which ends in .safetensors.")

flags.register_validator(
    "workdir", lambda folders: folders is None or all(folders), message="is empty; name the folder of a run"
)
flags.register_validator(
    "out", lambda path: path is None or path.endswith(".safetensors"), message="should end in .safetensors"
)


def main(console):
    workdirs = [Path(workdir) for workdir in WORKDIR.value]
    compile_cache.use(workdir=workdirs[0])
    from linseed.trainer import soup
    from linseed.trainer.weights import export

    def say(line):
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    found = soup.greedy(workdirs, which=WHICH.value, say=say)
    experiment = found.experiment
    export.write(
        found.weights,
        Path(OUT.value),
        model=experiment.model,
        config=found.config,
        statistics=experiment.statistics,
        class_names=experiment.class_names,
    )
    runs = f"{len(found.kept)} of {len(workdirs)} runs" if len(workdirs) > 1 else str(workdirs[0])
    say(f"{OUT.value}: {found.config.model.name}, {runs}, val {found.figures['accuracy']:.2%}")


def run():
    command.run(main, needs=("workdir", "out"))


if __name__ == "__main__":
    run()
