"""What is to be classified: images in memory, and the paths of files, one after another."""

import csv
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from PIL import Image

from linseed.trainer.data.decode import shown
from linseed.trainer.data.layout import is_passed_over
from linseed.trainer.errors import DataError

STDIN = "-"
_SORTED = 2**16  # entries of a folder that are sorted at a time


def named(images: Any, *, own) -> Iterator[tuple[str, Any]]:
    """(name, image) of each of `images`, as `classifier.Classifier.predict` takes them.

    own: the network's `Preprocessing`, whose channels tell a batch of grey images [N, H, W] from one image.
    """
    if isinstance(images, (str, os.PathLike)):
        path = os.path.expanduser(images)
        check([path])
        yield from ((name, name) for name in ((path,) if not os.path.isdir(path) else below(path)))
        return
    if isinstance(images, Image.Image):
        images = [images]
    elif hasattr(images, "__array__"):
        array = np.asarray(images)
        is_batch = array.ndim == 4 or array.shape[1:] == (own.height, own.width) and own.channels == 1
        images = array if is_batch else [array]
    elif not isinstance(images, Iterable):
        raise DataError(f"{type(images).__name__} is no image; give a path, an image of Pillow's or uint8 [H, W, C]")
    for place, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            path = os.path.expanduser(image)
            yield path, path
        elif isinstance(image, Image.Image):
            yield f"image {place}", image
        elif hasattr(image, "__array__"):
            yield f"image {place}", np.asarray(image)
        else:
            raise DataError(f"image {place} is a {type(image).__name__}; give a path, an image of Pillow's or an array")


def check(arguments: Sequence[str]):
    """Raises DataError for an argument of `paths` that names nothing."""
    for argument in arguments:
        if argument != STDIN and not os.path.exists(argument) and not _is_pattern(argument):
            raise DataError(f"no file or folder at {shown(argument)}; check the path")


def paths(arguments: Sequence[str], *, column: str, stdin: TextIO) -> Iterator[str]:
    """The paths that `arguments` name, one after another: nothing is listed whole.

    An argument is a file, a folder with what lies below it, a pattern such as "photos/*.jpg", a CSV file with `column`,
    or "-" for `stdin`, a path a line. Raises DataError, one line, for a CSV file without the column.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from filter(None, (line.rstrip("\r\n") for line in stdin))
        elif os.path.isdir(argument):
            yield from below(argument)
        elif argument.lower().endswith(".csv") and os.path.isfile(argument):
            yield from _in_column(argument, column)
        elif os.path.lexists(argument):
            yield argument
        else:
            yield from (path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path))


def below(folder: str) -> Iterator[str]:
    """The paths of the files in `folder` and the folders below it that may be images; see `layout.is_passed_over`.

    A folder of many entries is sorted in parts. A link to a folder is not followed. Raises DataError for a folder that
    cannot be listed.
    """
    folders = []
    try:
        with os.scandir(folder) as scan:
            while some := sorted(itertools.islice(scan, _SORTED), key=lambda entry: entry.name):
                for entry in some:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_passed_over(entry.name, is_folder=is_folder) or not is_folder and entry.is_dir():
                        continue
                    if is_folder:
                        folders.append(entry.path)
                    else:
                        yield entry.path
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror}); allow it, or leave it out") from None
    for path in folders:
        yield from below(path)


def _is_pattern(argument):
    return glob.escape(argument) != argument


def _in_column(path, column):
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if column not in (reader.fieldnames or ()):
                names = ", ".join(map(shown, reader.fieldnames or ()))[:200]
                raise DataError(f"{shown(path)} has no column '{column}' but {names or 'none'}; name it by --column")
            yield from filter(None, (row[column] for row in reader))
    except (OSError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read ({error}); write it again") from None
