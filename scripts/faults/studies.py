"""Damaged files of a study: one line names the file, its cure works, and no trial is changed without a word."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_collections

from linseed.scripts.faults.damage import empty, halve, junk, lose
from linseed.trainer.errors import LinseedError
from linseed.trainer.run.console import Quiet
from linseed.trainer.tuning import budget, tune
from linseed.trainer.tuning.study import STORAGE, STUDY

FLIPS = 40  # of single bits, spread over a file


def flip_at(path: Path, share: float):
    """Changes one bit at `share` of a file's length."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 0x01
    path.write_bytes(content)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"{how.__name__} {name}": (how, name) for name in (STUDY, STORAGE) for how in (halve, junk, empty)},
    f"lose {STORAGE}": (lose, STORAGE),
    **{
        f"bit {number} of {name}": (functools.partial(flip_at, share=(number + 0.5) / FLIPS), name)
        for name in (STUDY, STORAGE)
        for number in range(FLIPS)
    },
}


def go_on(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Runs the step `lr` of a study, or continues it; returns its record."""
    return tune.tune(
        config,
        workdir,
        step="lr",
        budget=budget.UNLIMITED,
        storage="",
        study="study",
        sampler="tpe",
        rates=(),
        decays=(),
        name="tiny",
        writer=Quiet(),
    )


def damaged(straight: Path, copy: Path, *, name: str, go_on: Callable[[Path], dict]) -> str:
    """Applies the damage `name` of `CASES` to a copy of the finished study and goes on; "" or what went wrong.

    Where that is refused, follows the cure to the letter: deletes `study.json`, or puts back a copy of `trials.db`.
    """
    expected = json.loads((straight / STUDY).read_text(encoding="utf-8"))[
        "trials"
    ]  # with times: one trained again is not the same
    shutil.copytree(straight, copy)
    how, file = CASES[name]
    how(copy / file)
    try:
        found = go_on(copy)["trials"]
    except LinseedError as error:
        cure = "delete it" if file == STUDY else "put back a copy of it"
        if "\n" in str(error) or file not in str(error) or cure not in str(error):
            return f"one line should name {file} and its cure: {error}"
        (copy / file).unlink(missing_ok=True)
        if file == STORAGE:
            shutil.copyfile(straight / file, copy / file)
        found = go_on(copy)["trials"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if json.dumps(found) == json.dumps(expected) else "the trials are not those of the study before"
