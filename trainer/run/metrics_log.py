"""`metrics.jsonl`: the records of a run, one JSON object a line, one line a logged step."""

import json
import logging
import os
from pathlib import Path

from linseed.trainer.run import workdir as workdir_lib


class MetricsLog:
    """Writes `metrics.jsonl`. Each line is flushed at once."""

    def __init__(self, path: Path, *, resume_step: int, logged: int):
        """Opens `path` and drops the records after `resume_step`: the resumed run writes them again.

        logged: the step of the last record that the checkpoint knows of, 0 where there is none. Warns where that record
        or an earlier one is missing.
        """
        lines = _read_lines(path)
        records = [record for record in lines if record and record["step"] <= resume_step]
        # A kill can tear a line. It is newer than the checkpoint, so that the resumed run writes it again.
        end = next((i for i, record in enumerate(lines) if record and record["step"] >= logged), len(lines))
        torn = None in lines[:end]
        if logged and (torn or not records or records[-1]["step"] < logged):
            logging.getLogger(__name__).warning(
                "%s is damaged: records of steps up to %d are lost (%d bad lines); the checkpoints are not affected",
                path,
                logged,
                lines.count(None),
            )
        workdir_lib.write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict):
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self):
        """Forces the records to the disk: a checkpoint must not be newer than its records."""
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


class NoMetricsLog:
    """The `MetricsLog` of a process that is not the writer of the run: it writes nothing."""

    def write(self, record: dict):
        """Does nothing."""

    def sync(self):
        """Does nothing."""

    def close(self):
        """Does nothing."""


def read_records(path: Path) -> list[dict]:
    """The records of a `metrics.jsonl`, in order. Skips lines that are no record, such as one that a kill tore."""
    return [record for record in _read_lines(path) if record]


def _read_lines(path) -> list[dict | None]:
    """The record of each line, None where the line holds none."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
        records.append(record if is_record else None)
    return records
