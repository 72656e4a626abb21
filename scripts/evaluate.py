"""Judges a snapshot of a run on validation or test. Each opening of the test split is recorded in the workdir.

python -m scripts.evaluate --workdir=runs/digits --which=best --split=val
"""

import json
from pathlib import Path

from absl import flags

from scripts import command

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
WHICH = flags.DEFINE_enum(
    "which",
    "best",
    ["best", "latest", "ema"],
    "best: the weights that won on validation; latest: the newest parameters; ema: their moving average.",
)
SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "What to judge on.")


def main(console):
    from trainer import train

    judged = train.evaluate_snapshot(Path(WORKDIR.value), which=WHICH.value, split=SPLIT.value)
    console.print_json(json.dumps(judged))


if __name__ == "__main__":
    command.run(main, needs=("workdir",))
