"""Stratified splits, and the sealed test split."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.errors import DataError

_log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """The files that images come from. records: `lazy.Records`. places: int64 [N], the record of each image."""

    records: Any
    places: np.ndarray


class Split(NamedTuple):
    """Labelled images, in memory or decoded on demand.

    images: uint8 [N, H, W, C], an array or `lazy.LazyImages`; labels: int32 [N], in 0..num_classes-1. origin: the files
    of images in memory, where they come from files; lazy images know their own (`lazy.origin`).
    """

    images: np.ndarray
    labels: np.ndarray
    origin: Origin | None = None


def take(split: Split, index: np.ndarray) -> Split:
    """The examples of `split` at `index` (int [M]), copied; lazy images stay lazy."""
    origin = split.origin and split.origin._replace(places=split.origin.places[index])
    return Split(split.images.take(index, axis=0), split.labels[index], origin)


def stratified_split(labels: np.ndarray, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices of `labels` (int [N]) in two with equal class shares.

    Draws `round(fraction * count)` examples of each class without replacement, at least one and never all. Returns
    `(rest, drawn)`, sorted int64 indices that together hold every example once. The draw depends only on `labels` and
    `seed`. Raises DataError for a class with a single example.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(f"class {label} has {len(members)} example; a split needs at least 2 of each class")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        drawn.append(rng.permutation(members)[:count])
    drawn = np.sort(np.concatenate(drawn))
    rest = np.setdiff1d(np.arange(len(labels)), drawn)
    return rest, drawn


def carve_validation(source, *, fraction: float, seed: int) -> tuple[Split, Split]:
    """`(train, val)` of a source: its own validation split if it has one, otherwise carved from train.

    The test split is not touched. Raises DataError, with its name, if a class has a single example.
    """
    if source.val is not None:
        return source.train, source.val
    for name, count in zip(source.class_names, np.bincount(source.train.labels), strict=False):
        if count == 1:
            raise DataError(
                f"class '{name}' has 1 image in train, too few to carve validation from; add images of it, remove the"
                " class, or give the data a validation split of its own"
            )
    rest, drawn = stratified_split(source.train.labels, fraction=fraction, seed=seed)
    return take(source.train, rest), take(source.train, drawn)


def part(split: Split, *, examples: int, seed: int) -> Split:
    """`examples` of `split`, drawn by `seed` with its class shares and at least one per class; 0 takes all.

    A larger part of the same seed contains a smaller one. Raises DataError if `examples` is out of range.
    """
    if not examples:
        return split
    return take(split, np.sort(_order(split, examples=examples, seed=seed)[:examples]))


def left_out(split: Split, *, examples: int, seed: int, most: int) -> Split:
    """At most `most` of the examples that `part` leaves out, those that a larger part would take first."""
    return take(split, np.sort(_order(split, examples=examples, seed=seed)[examples:][:most]))


def _order(split, *, examples, seed):
    """The indices of `split` in the order in which `part` takes them."""
    classes, counts = np.unique(split.labels, return_counts=True)
    if not len(classes) <= examples <= len(split.labels):
        raise DataError(
            f"config.data.train_examples={examples} should be at least {len(classes)}, one per class, and at most "
            f"{len(split.labels):,}, all of them; 0 takes all"
        )
    rng = np.random.default_rng([seed, 0xFEED])
    place = np.empty(len(split.labels))  # position of each example within its class, in 0..1, the first at 0
    for label, count in zip(classes, counts, strict=True):
        place[rng.permutation(np.flatnonzero(split.labels == label))] = np.arange(count) / count
    return np.argsort(place, kind="stable")


def count_openings(record: Path) -> int:
    """How often the test split was opened, by its `record`."""
    return len((files.read(record) or b"").splitlines())


class SealedTest:
    """The sealed test split: every opening is recorded before a pixel is read.

    open_test: reads the split. record: a JSON-lines file, one line per opening. fingerprint: see `dataset.Source`.
    """

    def __init__(self, open_test: Callable[[], Split], *, record: Path, fingerprint: str = ""):
        self._open_test = open_test
        self._record = record
        self.fingerprint = fingerprint

    def noted(self) -> str:
        """The fingerprint that the run noted when it opened the split last, "" if it did not."""
        lines = (files.read(self._record) or b"").splitlines()
        return next(filter(None, map(_noted_by_a_run, reversed(lines))), "")

    def check_is(self, fingerprint: str, *, cure: str):
        """Raises DataError if `fingerprint`, the run's, is another one; "" is not known."""
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            raise DataError(
                "the test split changed since this run started: the names, sizes or labels of its examples; restore it"
                + cure
            )

    @property
    def openings(self) -> int:
        """How often the test split was opened in this workdir."""
        return count_openings(self._record)

    def open(self, *, by: str, which: str, step: int) -> Split:
        """Opens the test split. `by`: the command; `which`, `step`: the weights to be evaluated."""
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "by": by, "which": which, "step": step}
        entry |= {"fingerprint": self.fingerprint} if self.fingerprint else {}
        before = files.read(self._record) or b""
        if damaged := [checksum.loads_or_old(line) for line in before.splitlines()].count(None):
            _log.warning("%s is damaged: each of its %d bad lines counts as an opening", self._record, damaged)
        if before and not before.endswith(b"\n"):
            before += b"\n"
        files.write(self._record, before + json.dumps(checksum.seal(entry)).encode() + b"\n")
        return self._open_test()


def _noted_by_a_run(line):
    entry = checksum.loads_or_old(line) or {}  # one of an earlier version has no fingerprint
    return entry.get("fingerprint", "") if entry.get("by") == "train" else ""
