"""`metrics.jsonl`: the records of a run, one JSON object a line with its checksum, one line a logged step."""

import json
import logging
import os
from pathlib import Path

from linseed.trainer import checksum, files


class MetricsLog:
    """Writes `metrics.jsonl`. Each line is flushed at once."""

    def __init__(self, path: Path, *, resume_step: int, logged: int):
        """Opens `path` and drops the records after `resume_step`: the resumed run writes them again.

        logged: the step of the last record that the checkpoint knows of, 0 where there is none. Warns where that record
        or an earlier one is missing.
        """
        lines = read_lines(path)
        records = [record for record in lines if record and record["step"] <= resume_step]
        # Damage after the last record of the checkpoint does no harm: the resumed run writes these records again.
        end = next((i for i, record in enumerate(lines) if record and record["step"] >= logged), len(lines))
        torn = None in lines[:end]
        if logged and (torn or not records or records[-1]["step"] < logged):
            logging.getLogger(__name__).warning(
                "%s is damaged: records of steps up to %d are lost (%d bad lines); the checkpoints are not affected",
                path,
                logged,
                lines.count(None),
            )
        files.write(path, "".join(map(_line, records)))
        self._file = files.append(path)

    def write(self, record: dict):
        self._file.write(_line(record))
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
    """The records of a `metrics.jsonl`, in order, without the lines that are damaged; a warning counts these.

    A last line that a kill tore is no damage.
    """
    lines = read_lines(path)
    if lost := lines.count(None):
        logging.getLogger(__name__).warning(
            "%s is damaged: %d of its %d records are left out; the checkpoints are not affected", path, lost, len(lines)
        )
    return [record for record in lines if record]


def _line(record):
    return json.dumps(checksum.seal(record)) + "\n"


def read_lines(path: Path) -> list[dict | None]:
    """The record of each line, None where the line is not what was written; [] without a file."""
    *lines, torn = (files.read(path) or b"").split(b"\n")
    records = [_record(line) for line in lines]
    return [*records, _record(torn)] if _record(torn) else records


def _record(line):
    record = checksum.loads_or_old(line)
    return record if record and isinstance(record.get("step"), int) else None
