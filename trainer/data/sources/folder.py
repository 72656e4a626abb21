"""Class folders: `<class>/<image>`, with or without `train/`, `val/` and `test/` above them."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, NamedTuple

import numpy as np

from linseed.ranges import Between, Inside, Natural, OneOf
from linseed.trainer.data import survey
from linseed.trainer.data.dataset import Source, empty_images
from linseed.trainer.data.decode import BACKGROUNDS, FITS, INTERPOLATIONS, Conversion, attempt, decode_image, shown
from linseed.trainer.data.image_file import quiet
from linseed.trainer.data.listing import (
    CURE,
    CURE_IN_TEST,
    ON_BAD_IMAGE,
    Files,
    check_headers,
    describe_bad,
    fingerprint,
    list_folder,
    name_first,
)
from linseed.trainer.data.sources.folder_stream import FileRecords
from linseed.trainer.data.splits import Origin, Split, take
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import cores

_FILES_PER_TASK = 64

_log = logging.getLogger(__name__)


class _Size(NamedTuple):
    """The required image size, and the file or setting that set it."""

    height: int
    width: int
    set_by: str


def folder(
    *,
    root: str,
    image_size: Natural = 0,
    fit: Annotated[str, OneOf(FITS)] = "crop",
    background: Annotated[str, OneOf(BACKGROUNDS)] = "white",
    bits: Annotated[int, Between(8, 16)] = 16,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = "bilinear",
    test_fraction: Inside = 0.2,
    split_seed: Natural = 0,
    on_bad_image: Annotated[str, OneOf(ON_BAD_IMAGE)] = "error",
) -> Source:
    """Reads class folders under `root` as RGB; of the test images, the headers alone.

    `root` holds `train/`, and optionally `val/` and `test/`, each with one folder per class; or the class folders
    themselves. Without `test/`, `split_seed` carves a stratified test split of `test_fraction` from the list of files,
    before any image is read. With `test/`, both are unused. The sorted names of the class folders give the labels, and
    the sorted file names the order. What is passed over, and what is refused: see `layout`. `image_size` in pixels: see
    `decode.decode_image`; 0 keeps the size of the images, which must then be equal. `fit`, `background`, `bits` and
    `interpolation`: see `decode.Conversion`.

    An image is bad if it cannot be decoded, or is a link out of `root`. `on_bad_image` "error" raises; "skip" leaves it
    out and lists it in `skipped` (in the test split: logs it at level WARNING). Raises DataError for data that is
    missing, bad or not in this layout.
    """
    listing = list_folder(root, test_fraction=test_fraction, split_seed=split_seed)
    root, class_names, files = listing.root, listing.class_names, listing.files
    conversion = Conversion(fit=fit, background=background, bits=bits, interpolation=interpolation)

    def decode(path: str) -> np.ndarray:
        return decode_image(os.path.join(root, path), image_size=image_size, conversion=conversion)

    size = _Size(image_size, image_size, "config.data.source.image_size") if image_size else None
    size = size or _first_size(root, files["train"], decode=decode)
    splits, bad = {}, {}
    for name in sorted(files.keys() - {"test"}):
        splits[name], bad_here = _read(root, files[name], decode=decode, size=size)
        bad |= bad_here
    if bad and on_bad_image == "error":
        raise DataError(describe_bad(root, bad, total=sum(len(files[name].paths) for name in splits), cure=CURE))
    _check_classes_left(root, splits["train"], class_names)
    if "val" in splits and not len(splits["val"].labels):
        raise DataError(f"no image in {shown(root)}/val can be read; repair them, or delete the folder")

    if on_bad_image == "error":
        check_headers(root, files["test"])

    return Source(
        train=splits["train"],
        val=splits.get("val"),
        open_test=functools.partial(
            _open_test, root, files["test"], decode=decode, size=size, on_bad_image=on_bad_image
        ),
        class_names=class_names,
        skipped=tuple(f"{shown(path)}: {reason}" for path, reason in bad.items()),
        test_fingerprint=fingerprint(root, files["test"]),
        notes=listing.notes
        + survey.notes(FileRecords(root, files["train"]), conversion=conversion, makes_square=bool(image_size)),
    )


def _open_test(root: str, files: Files, *, decode: Callable, size: _Size, on_bad_image: str) -> Split:
    test, bad = _read(root, files, decode=decode, size=size)
    if bad and (on_bad_image == "error" or not len(test.labels)):
        raise DataError(describe_bad(root, bad, total=len(files.paths), cure=CURE_IN_TEST))
    if bad:
        _log.warning("left out %d of %d test images: %s", len(bad), len(files.paths), name_first(bad))
    return test


def _first_size(root: str, files: Files, *, decode: Callable) -> _Size:
    """The size of the first readable image."""
    bad = {}
    for path in files.paths:
        with quiet():
            image, reason = _decode_or_reason(path, files.refused, decode=decode)
        if image is not None:
            return _Size(*image.shape[:2], shown(path))
        bad[path] = reason
    raise DataError(describe_bad(root, bad, total=len(files.paths), cure=CURE))


def _read(root: str, files: Files, *, decode: Callable, size: _Size) -> tuple[Split, dict[str, str]]:
    """The readable images, and the reason for each other path."""
    count = len(files.paths)
    images = empty_images(count, height=size.height, width=size.width, channels=3)
    good = np.ones(count, bool)

    def read_some(start: int) -> dict[str, str]:
        bad = {}
        for i in range(start, min(start + _FILES_PER_TASK, count)):
            path = files.paths[i]
            image, reason = _decode_or_reason(path, files.refused, decode=decode)
            if image is None:
                bad[path] = reason
                good[i] = False
                continue
            if image.shape[:2] != (size.height, size.width):
                raise DataError(
                    f"images differ in size: {size.set_by} is {size.height}x{size.width} and {shown(path)} is"
                    f" {image.shape[0]}x{image.shape[1]}; set config.data.source.image_size to resize them"
                )
            images[i] = image
        return bad

    bad = {}
    with quiet(), ThreadPoolExecutor(min(8, cores())) as pool:
        for some in pool.map(read_some, range(0, count, _FILES_PER_TASK)):
            bad |= some
    split = Split(images, files.labels, Origin(FileRecords(root, files), np.arange(count)))
    return take(split, np.flatnonzero(good)) if bad else split, bad


def _decode_or_reason(path: str, refused: dict[str, str], *, decode: Callable) -> tuple[np.ndarray | None, str]:
    if path in refused:
        return None, refused[path]
    return attempt(lambda: decode(path), path)


def _check_classes_left(root: str, train: Split, class_names: Sequence[str]) -> None:
    counts = np.bincount(train.labels, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if not count:
            raise DataError(f"no training image of class '{shown(name)}' in {shown(root)} can be read; repair them")
