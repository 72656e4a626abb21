"""Classifies image files with a trained network: a line each into a CSV file, or JSON lines.

linseed predict --model=runs/digits/model.linseed --out=labels.csv photos
linseed predict --model=model.linseed --out=labels.jsonl --top=3 "photos/**/*.jpg" more/a.png list.csv
find photos -name "*.jpg" | linseed predict --model=model.linseed --out=labels.csv -

PATHS are files, folders, patterns, CSV files with a column of paths, or - for one path a line on stdin. The same
command goes on where it was stopped: a path that has a line in --out is not predicted again. Unreadable files are left
out. Exit status 2 if nothing can be predicted.
"""

import sys
import time
from pathlib import Path

from absl import flags

from linseed.scripts.cli import command, compile_cache

MODEL = command.define_path("model", None, "The model file: RUN/model.linseed, or one that linseed export wrote.")
OUT = command.define_path("out", None, "The file to add lines to: .csv or .jsonl.")
TOP = flags.DEFINE_integer("top", 1, "How many of the most probable classes a line has.", lower_bound=1)
COLUMN = flags.DEFINE_string("column", "path", "The column of a CSV file among PATHS that holds paths.")
PART = flags.DEFINE_string("part", "1/1", "This process's part of the files, such as 2/4; each part has its own --out.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; by default by their size.", lower_bound=1)

flags.register_validator(
    "out",
    lambda path: path is None or path.lower().endswith((".csv", ".jsonl")),
    message="should end in .csv or .jsonl",
)

_SECONDS = 30.0  # between lines of progress


def main(console, *paths):
    part = _part()
    command.check_folder(OUT.value, flag="out")
    compile_cache.use(workdir=None)
    from linseed.trainer.errors import DataError
    from linseed.trainer.portable import classifier, images, predict

    images.check(paths)
    if images.STDIN in paths:
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files can be any bytes

    def say(line):
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    with console.status("loading") as status:
        done = predict.into_table(
            classifier.load(MODEL.value),
            images.paths(paths, column=COLUMN.value, stdin=sys.stdin),
            Path(OUT.value),
            top=TOP.value,
            part=part,
            batch_size=BATCH_SIZE.value,
            say=say,
            show=_progress(status.update if console.is_terminal else say, 0.0 if console.is_terminal else _SECONDS),
        )
    if not done.predicted and not done.there:
        what = f"none of the {done.bad:,} files can be read" if done.bad else "no images there"
        raise DataError(f"{' '.join(paths)[:200]}: {what}; check the paths")
    say(f"{OUT.value}: {_shown(done)}")


def _progress(show, seconds):
    """Shows how far it is, at most every so many seconds."""
    last = time.monotonic()

    def update(done):
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            show(_shown(done))

    return update


def _shown(done):
    there = f", {done.there:,} were there" if done.there else ""
    bad = f", {done.bad:,} cannot be read" if done.bad else ""
    return f"{done.predicted:,} predicted{there}{bad}; {done.predicted / max(done.seconds, 1e-9):,.0f} images/s"


def _part():
    from linseed.trainer.errors import ConfigError

    index, _, count = PART.value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--part={PART.value} should be I/N with I from 1 to N, such as 1/4")
    return int(index), int(count)


def run():
    command.run(main, needs=("model", "out"), argument="PATHS", many=True)


if __name__ == "__main__":
    run()
