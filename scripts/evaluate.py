"""Evaluates a run's checkpoint, or an ensemble, on validation or test. Each use of test is recorded in every workdir.

linseed evaluate --workdir=runs/digits --which=best --split=val
linseed evaluate --workdir=runs/digits0 --workdir=runs/digits1 --workdir=runs/digits2
linseed evaluate --workdir=runs/digits_snapshots --which=snapshots
"""

import json
from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache

WORKDIR = command.define_path(
    "workdir",
    None,
    "Folder of the run. Repeat it for more runs: their predictions are averaged as an ensemble.",
    many=True,
)
WHICH = flags.DEFINE_enum(
    "which",
    "best",
    ["best", "latest", "ema", "snapshots"],
    "best: the best weights on validation; latest: the newest weights; ema: their moving average; snapshots: "
    "all checkpoints that the run kept, as an ensemble.",
)
SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "The split to evaluate on.")

flags.register_validator(
    "workdir", lambda folders: folders is None or all(folders), message="is empty; name the folder of a run"
)


def main(console):
    workdirs = [Path(workdir) for workdir in WORKDIR.value]
    compile_cache.use(workdir=workdirs[0])
    from linseed.trainer import ensemble, evaluation

    if len(workdirs) == 1 and WHICH.value != "snapshots":
        judged = evaluation.evaluate_checkpoint(workdirs[0], which=WHICH.value, split=SPLIT.value)
    else:
        judged = ensemble.evaluate_ensemble(workdirs, which=WHICH.value, split=SPLIT.value)
    console.print_json(json.dumps(judged))


def run():
    command.run(main, needs=("workdir",))


if __name__ == "__main__":
    run()
