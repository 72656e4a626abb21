"""Randomly changed configs: each must be built, or refused in one line."""

import copy
import math
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from linseed.trainer.config import canonical
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.config.sections import TABLES
from linseed.trainer.errors import LinseedError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.run.console import Quiet
from linseed.trainer.train import train_and_evaluate

# Values that a user or program may write: right types out of range, wrong types, names of other things.
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 64, 1000, 2**31, 2**63, 10**400, -(10**30)),
    *(0.1, 0.5, 0.999, 1.0, 1.5, -0.5, 100.0, 1e-320, 1e12, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "none", "0", "auto", "\x00", "\ud800", "../..", "/dev/null", "a" * 5000, "(" * 300, "{x}", "%s"),
    *("flip_lr(0.5)", "cutout(1e999)", "rotate()|", "host", "channel_mean", "global_norm", "bfloat16"),
    *((), (0,), (1,), (2, 4), (4, 8, 8), (-1,), (0.5,), (0.5, 0.9), (math.nan,), ("rest:",), ("rest: lr=0.1",)),
    *(("(a{99999999999}): lr=1",), ("rest: lr=1e999",), ("rest:", "rest:"), (10**9, 10**9), ([],), ((1,),)),
    *([], [1], ["a"], [[1]], {}, {"name": "x"}, {"name": None}, {"name": ["x"]}, {"a": {"b": {"c": 1}}}),
)


def keys(config: ml_collections.ConfigDict) -> list[str]:
    """The keys to change: every field, every section, and keys that no config has."""
    fields = [key for key, _ in canonical.flatten(config)]
    sections = {key.rpartition(".")[0] for key in fields} - {""}
    new = ["nothing", "data.nothing", "model.depth", "schedule.warmup_steps", "horizon.steps", "horizon.percent"]
    return sorted({*fields, *sections, *new})


def names(key: str) -> tuple[str, ...]:
    """The names that a section's `name` may have, () for another key."""
    return tuple(TABLES.get(key.removesuffix(".name"), ())) if key.endswith(".name") else ()


def values(key: str, config: ml_collections.ConfigDict) -> tuple[Any, ...]:
    """The values to try for `key`; half are of its own type, so that some configs can run."""
    present = dict(canonical.flatten(config)).get(key)
    kind = (int, float) if isinstance(present, (int, float)) else type(present)
    alike = [value for value in VALUES if isinstance(value, kind) and not isinstance(value, bool)]
    alike = [*names(key), *alike[: len(names(key))]] if names(key) else alike
    return (*VALUES, *(alike * (len(VALUES) // max(1, len(alike)))))


def draw(rng: np.random.Generator, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """One or two changes, {dotted key: value}."""
    drawn = {}
    for _ in range(int(rng.integers(1, 3))):
        key = str(rng.choice(keys(config)))
        choices = values(key, config)
        drawn[key] = choices[int(rng.integers(len(choices)))]
    return drawn


def apply(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict | None:
    """`config` with `changes`, of any type, as a `config.json` may hold them.

    None if a change has removed the section of another key.
    """
    nested = config.to_dict()
    for key, value in changes.items():
        *section, name = key.split(".")
        owner = nested
        for part in section:
            owner = owner.get(part) if isinstance(owner, dict) else None
        if not isinstance(owner, dict):
            return None
        owner[name] = copy.deepcopy(value)  # a later change may modify it, and VALUES must stay
    return ml_collections.ConfigDict(nested)


def outcome(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> str:
    """ "invalid", "refused" (by building) or "built". Raises any other error, and for a message of two lines."""
    try:
        resolve(config)
    except LinseedError as error:
        _check_line(error)
        return "invalid"
    try:
        build(config, workdir, shared=shared)
    except LinseedError as error:
        _check_line(error)
        return "refused"
    return "built"


def train(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> str:
    """ "trained", or "stopped" by a LinseedError, after two steps of `config`. Raises any other error."""
    short = changed(config, {"horizon": {"steps": 2}, "schedule": {"name": "constant", "warmup_steps": 0}})
    try:
        train_and_evaluate(short, workdir, writer=Quiet(), on_config_change="refuse", shared=shared)
    except LinseedError as error:
        _check_line(error)
        return "stopped"
    return "trained"


def _check_line(error):
    if "\n" in str(error):
        raise AssertionError(f"more than one line: {error}")
