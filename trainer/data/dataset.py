"""The return type of every data source, and two steps that sources share."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from linseed.trainer.data.splits import Split, stratified_split
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import memory_bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled image data set whose test split is not read yet.

    train, val: uint8 [N, H, W, C] images of one size, int32 [N] labels that index `class_names`. `val` is None if the
    data has no validation split; the caller then carves it from `train`. `open_test` reads the test split; nothing
    reads its pixels before. `skipped` holds a line "path: reason" for each bad image left out of train and val.
    `test_fingerprint` is a hash of the names, sizes and labels in the test split, "" where these are not known. `notes`
    holds a line for each thing that is not read as its owner may expect.
    """

    train: Split
    val: Split | None
    open_test: Callable[[], Split]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    test_fingerprint: str = ""
    notes: tuple[str, ...] = ()


def hashed(*what: Any) -> str:
    """sha256 of the `repr` of `what`, hexadecimal."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def carve_test(labels: np.ndarray, *, test_fraction: float, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratified indices `(train, test)`, int64 and sorted, of `labels` (int [N]).

    The draw depends only on the labels, `test_fraction` (between 0 and 1) and `split_seed` (at least 0).
    """
    return stratified_split(labels, fraction=test_fraction, seed=split_seed)


def empty_images(count: int, *, height: int, width: int, channels: int) -> np.ndarray:
    """Unset memory for `count` images: uint8 [count, height, width, channels].

    Raises DataError if the machine has less memory; the system would kill the process halfway through reading.
    """
    check_memory(count, height=height, width=width, channels=channels)
    return np.empty((count, height, width, channels), np.uint8)


def check_memory(count: int, *, height: int, width: int, channels: int):
    """Raises DataError if `count` uint8 images need more than the machine's memory."""
    needed = count * height * width * channels
    present = memory_bytes()
    if present is not None and needed > present:
        raise DataError(
            f"{count} images of {height}x{width}x{channels} need {needed / 1e9:.1f} GB but this machine has"
            f" {present / 1e9:.1f} GB; use fewer or smaller images (config.data.source.image_size for class folders)"
        )
