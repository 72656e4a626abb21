"""The folder of one run: one process at a time, one config, and files that are whole or absent."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import ml_collections

from trainer import config as config_lib
from trainer.errors import WorkdirError

CONFIG = "config.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
OPENINGS = "test_openings.jsonl"
STATISTICS = "statistics.json"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Holds `workdir`, made if need be, against a second run. The lock dies with the process, however it ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("w")
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir} cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(f"another run is using {workdir}; wait for it, or choose another --workdir") from error
        yield


def claim(workdir: Path, config: ml_collections.ConfigDict, *, on_change: str):
    """Writes `config.json`, or makes sure that the run that is there is of the same config.

    Where it differs and there are snapshots: `on_change="refuse"` raises WorkdirError with the differing
    keys; "accept" keeps the old config and result under numbered names and goes on with the new config.
    """
    path = workdir / CONFIG
    if path.exists():
        changed = config_lib.differences(read_config(workdir), config)
        if not changed:
            return
        if any((workdir / CHECKPOINTS).glob("[0-9]*")):
            if on_change == "refuse":
                shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
                raise WorkdirError(
                    f"{workdir} holds a run of another config ({shown}); choose another --workdir, "
                    "or continue this one with --on_config_change=accept"
                )
            number = len(list(workdir.glob("config.*.json"))) + 1
            path.rename(workdir / f"config.{number}.json")
            if (workdir / RESULT).exists():
                (workdir / RESULT).rename(workdir / f"result.{number}.json")
        (workdir / STATISTICS).unlink(missing_ok=True)
    write_whole(path, config_lib.to_json(config))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that ran in `workdir`. Raises WorkdirError where there is none."""
    try:
        return config_lib.from_json((workdir / CONFIG).read_text())
    except FileNotFoundError as error:
        raise WorkdirError(f"{workdir} holds no run: there is no {CONFIG}; train first, or check --workdir") from error
    except ValueError as error:
        raise WorkdirError(f"{workdir / CONFIG} is damaged ({error}); choose another --workdir") from error


def read_result(workdir: Path) -> dict | None:
    """The result of a finished run, or None."""
    path = workdir / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def write_whole(path: Path, text: str):
    """Writes `text` so that a kill leaves the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
