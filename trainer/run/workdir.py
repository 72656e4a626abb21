"""The folder of one run: one process at a time, one config, and files that are complete or absent."""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from linseed.trainer import checksum, files
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError, WorkdirError

CONFIG = "config.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
ROLLBACKS = "rollbacks.jsonl"
OPENINGS = "test_openings.jsonl"
STATISTICS = "statistics.json"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
LOCK = "lock"
DAMAGED = "damaged_checkpoints"
PRETRAINED = "pretrained.json"  # where the first weights come from
MODEL = "model.linseed"  # the best weights and all that predicting needs
PREDICTIONS = "predictions.safetensors"
EXAMPLES = "examples.json"
FILES = (
    *(PRETRAINED, CONFIG, RESULT, METRICS, ROLLBACKS, OPENINGS, STATISTICS, CHECKPOINTS, REPORT, PREDICTIONS, EXAMPLES),
    *(LOCK, DAMAGED, MODEL),
)

_CURES = {
    CONFIG: "train again with --on_config_change=accept to go on with the given config, or choose another --workdir",
    RESULT: "delete it and run the same train command again: the checkpoints rebuild it",
}

_RESULT_KEYS = {"best_step", "steps", "stop_reason", "val", "test", "test_openings"}

# Keys of earlier versions: section, old name, new name.
_RENAMED = [("model", "init", "kernel_init")]


class _DamagedFileError(WorkdirError):
    """A file of a run that does not hold what was written."""


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks `workdir`, made if needed, against a second run. The lock ends with the process, however that ends.

    Raises WorkdirError too if a file of a run there is a link. While entered, nothing is written into another folder
    that has come to its place.
    """
    try:
        files.make(workdir)
        files.refuse_links(*(workdir / name for name in FILES))
        file = files.append(workdir / LOCK)
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir} cannot be written ({error.strerror}); choose another") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(f"another run is using {workdir}; wait for it, or choose another --workdir") from error
        files.clean(workdir)
        with files.held(workdir):
            yield


def check_config(workdir: Path, config: ml_collections.ConfigDict, *, on_change: str) -> list[str]:
    """The differences of `config` from the config of the run in `workdir`, "key: old -> new"; [] for a new folder.

    on_change: "refuse" raises WorkdirError if they differ and the run has results to lose; "accept" allows that, and a
    damaged `config.json`. Raises WorkdirError too for a folder with files of these names but no `config.json`.
    """
    holds_a_run = (workdir / RESULT).exists() or any((workdir / CHECKPOINTS).glob("[0-9]*"))
    if not (workdir / CONFIG).exists():
        if holds_a_run or (workdir / METRICS).exists():
            raise WorkdirError(f"{workdir} holds files of a run and no {CONFIG}; choose another --workdir")
        return []
    try:
        changed = canonical.differences(_with_defaults(read_config(workdir)), config)
    except _DamagedFileError:
        if on_change == "refuse":
            raise
        changed = [f"{CONFIG}: damaged -> the given config"]
    if changed and holds_a_run and on_change == "refuse":
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise WorkdirError(
            f"{workdir} holds a run of another config ({shown}); choose another --workdir, "
            "or continue this one with --on_config_change=accept"
        )
    return changed


def _with_defaults(config):
    """The config of an earlier version's run with the keys that are new; unchanged if it cannot be completed."""
    try:
        return resolve(config)
    except ConfigError:
        return config


def write_config(workdir: Path, config: ml_collections.ConfigDict):
    """Writes `config` as the run's config. An earlier config and its result stay under numbered names.

    A kill at any moment leaves a `config.json`: the old one, whose run can continue, or the new one.
    """
    path = workdir / CONFIG
    if path.exists() and check_config(workdir, config, on_change="accept"):
        numbered = ((workdir / f"config.{n}.json", workdir / f"result.{n}.json") for n in itertools.count(1))
        kept_config, kept_result = next(pair for pair in numbered if not any(map(os.path.lexists, pair)))
        if (workdir / RESULT).exists():
            files.move(workdir / RESULT, kept_result)
        files.write(kept_config, files.read(path))
    write_sealed(path, json.loads(canonical.to_json(config)))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`. Raises WorkdirError if there is none."""
    values = _read_json(workdir / CONFIG)
    if values is None:
        raise WorkdirError(f"{workdir} holds no run: there is no {CONFIG}; train first, or check --workdir")
    if "model" not in values or "optimizer" not in values:
        raise WorkdirError(f"{workdir / CONFIG} is not the config of a run; choose another --workdir")
    for section, old, new in _RENAMED:
        if isinstance(values.get(section), dict) and old in values[section]:
            values[section][new] = values[section].pop(old)
    try:
        return ml_collections.ConfigDict(values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # keys that cannot be attributes
        raise WorkdirError(
            f"{workdir / CONFIG} is not the config of a run ({error}); choose another --workdir"
        ) from error


def read_result(workdir: Path) -> dict | None:
    """The result of a finished run, or None."""
    values = _read_json(workdir / RESULT)
    if values is not None and not _RESULT_KEYS <= values.keys():
        raise _damaged(workdir / RESULT)
    return values


def write_sealed(path: Path, values: dict[str, Any]):
    """Writes `values` to `path` as JSON, with a checksum."""
    files.write(path, json.dumps(checksum.seal(values), indent=2))


def _read_json(path):
    """The JSON object in `path`, or None if there is no such file."""
    content = files.read(path)
    if content is None:
        return None
    values = checksum.loads_or_old(content)
    if values is None:
        raise _damaged(path)
    return values


def _damaged(path):
    return _DamagedFileError(f"{path} is damaged: it is not what was written; {_CURES[path.name]}")
