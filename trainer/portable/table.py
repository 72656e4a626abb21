"""Predictions as lines of a file, CSV or JSON: added as they come, and gone on with after a kill.

A line has the path of an image, its `top` most probable classes with their probabilities, and the beginning of the
model file's checksum, by which lines of another model are told apart.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from linseed.trainer.data.decode import shown
from linseed.trainer.errors import DataError
from linseed.trainer.portable.classifier import Predictions

MARK = 12  # characters of the checksum

_UNSORTED = 2**16


class Row(NamedTuple):
    """What a line says. classes: (name, probability), the most probable first."""

    path: str
    classes: list[tuple[str, float]]
    model: str


class Paths:
    """Paths that were seen, as 8 bytes each: two in ten million are taken for one with a chance of 3 in a million."""

    def __init__(self):
        self._sorted, self._latest = np.empty(0, np.uint64), set()

    def add(self, path: str) -> bool:
        """Whether `path` is new."""
        number = number_of(path)
        place = np.searchsorted(self._sorted, np.uint64(number))
        if number in self._latest or place < len(self._sorted) and self._sorted[place] == number:
            return False
        self._latest.add(number)
        if len(self._latest) > max(_UNSORTED, len(self._sorted) // 4):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted, self._latest = np.sort(np.concatenate([self._sorted, latest])), set()
        return True


def number_of(path: str) -> int:
    """A hash of `path`, below 2**64, the same on all machines."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")


def _csv_header(top):
    more = (f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "probability"))
    return ",".join(["path", "label", "probability", *more, "model"]) + "\n"


def _csv_line(row):
    classes = (text for name, share in row.classes for text in (_quoted(name), f"{share:.6f}"))
    return ",".join([_quoted(row.path), *classes, row.model]) + "\n"


def _quoted(text):
    return '"' + text.replace('"', '""') + '"' if any(letter in text for letter in ',"\r\n') else text


def _csv_read(line):
    (fields,) = csv.reader([line], strict=True)
    return Row(fields[0], list(zip(fields[1:-1:2], map(float, fields[2:-1:2]), strict=True)), fields[-1])


def _json_line(row):
    (label, probability), *_ = row.classes
    top = {"top": row.classes} if len(row.classes) > 1 else {}
    return json.dumps({"path": row.path, "label": label, "probability": probability, **top, "model": row.model}) + "\n"


def _json_read(line):
    found = json.loads(line)
    classes = found.get("top") or [(found["label"], found["probability"])]
    return Row(found["path"], [(name, float(share)) for name, share in classes], found["model"])


class Format(NamedTuple):
    """header: of a file with so many classes a line. line, read: a `Row` as text, and back.

    is_open: whether a line end after these bytes is within quotes, as a path may hold one.
    """

    header: Callable[[int], str]
    line: Callable[[Row], str]
    read: Callable[[str], Row]
    is_open: Callable[[bytes], bool]


FORMATS = {
    ".csv": Format(_csv_header, _csv_line, _csv_read, lambda line: line.count(b'"') % 2 == 1),
    ".jsonl": Format(lambda top: "", _json_line, _json_read, lambda line: False),
}


class Table:
    """The lines of the file at `path`, whose ending is one of FORMATS.

    top: classes a line. model: the checksum of the model file. seen: gets the paths of the lines that are there.
    """

    def __init__(self, path: Path, *, top: int, model: str, seen: Paths):
        self._path, self._top, self._model, self._seen = path, top, model[:MARK], seen
        self._format = FORMATS[path.suffix.lower()]
        self._header = self._format.header(top).encode()
        self.count = 0  # of lines that are there

    def keep(self, file: BinaryIO) -> int:
        """How many bytes of `file` are whole lines. Raises DataError, one line, for a file that is not of this kind."""
        size = 0
        for number, line in enumerate(_whole_lines(file, self._format.is_open), start=1):
            size += len(line)
            if number == 1 and self._header:
                self._check(line == self._header, number, "has other columns")
                self._header = b""
                continue
            try:
                row = self._format.read(line.decode(errors="surrogateescape"))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error):
                self._check(False, number, "is no line of predictions")
            self._check(row.model == self._model, number, f"is of another model ({shown(str(row.model))[:MARK]})")
            self._check(len(row.classes) == self._top, number, f"has {len(row.classes)} classes")
            self._seen.add(row.path)
            self.count += 1
        return size

    def lines(self, found: Predictions) -> bytes:
        """The lines of `found`, after the header where the file has none yet."""
        if not len(found):
            return b""
        rows = map(Row, found.names, found.top(self._top), [self._model] * len(found))
        text = "".join(map(self._format.line, rows)).encode(errors="surrogateescape")
        header, self._header = self._header, b""
        return header + text

    def _check(self, holds, number, what):
        if not holds:
            raise DataError(f"line {number} of {self._path} {what}; choose another --out, or move that file away")


def _whole_lines(file: BinaryIO, is_open: Callable[[bytes], bool]) -> Iterator[bytes]:
    """The lines that end, with what belongs to one joined."""
    line = b""
    for part in file:
        line += part
        if line.endswith(b"\n") and not is_open(line):
            yield line
            line = b""
