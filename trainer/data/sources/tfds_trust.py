"""Keeps a prepared TFDS folder, which may come from anyone, from running code and from reading other files."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from linseed.trainer.data.decode import shown
from linseed.trainer.errors import DataError

# NAME, NAME/CONFIG, each also with :VERSION. TFDS also takes a namespace, whose code it would download and run.
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?(:(\d+|\*)(\.(\d+|\*)){2})?")
_CLASS_KEYS = ("pythonclassname", "type")


def check_name(dataset: str):
    """Raises DataError unless `dataset` is the plain name of a data set."""
    if not _NAME.fullmatch(dataset) or ".." in dataset:
        raise DataError(
            f"config.data.source.dataset='{shown(dataset)}' should be NAME, NAME/CONFIG or NAME:VERSION; data sets of"
            " a namespace run their own code and are not read"
        )


def check_features(folder: Path):
    """Raises DataError if a `features.json` below `folder` would make TFDS import a class that is not its own.

    Checks exactly what TFDS reads: it refuses links out of the folder, links to folders, and anything that is no file,
    such as a pipe. `folder` itself may be a link.
    """
    for path in _files(str(folder)):
        if os.path.basename(path) != "features.json":
            continue
        try:
            with open(path, encoding="utf-8") as file:
                classes = list(_classes(json.load(file)))
        except (ValueError, RecursionError, OSError) as error:
            raise DataError(f"{shown(path)} is damaged; prepare the data set again") from error
        for name in classes:
            if not name.startswith("tensorflow_datasets."):
                raise DataError(
                    f"{shown(path)} asks for the class '{shown(name)}', which is not TFDS's own and would run code; "
                    "delete that data set, or export it to class folders"
                )


def _files(folder: str) -> Iterator[str]:
    """The paths of all files below `folder`, each a file inside it."""
    waiting = [os.path.realpath(folder)]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            if here == os.path.realpath(folder) and isinstance(error, FileNotFoundError):
                return  # not prepared yet
            raise DataError(f"{shown(here)} cannot be listed ({error.strerror}); make it a readable folder") from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
                continue
            if entry.is_dir():
                raise DataError(f"{shown(entry.path)} is a link to a folder; put the folder there instead of the link")
            check_inside([entry.path], folder)
            if not entry.is_file():
                raise DataError(f"{shown(entry.path)} is neither a file nor a folder; delete it")
            yield entry.path


def check_inside(files: Iterable[str], folder: str):
    """Raises DataError if one of `files` lies outside `folder`, through a link or '..'."""
    root = os.path.realpath(folder)
    for file in files:
        if os.path.commonpath([root, os.path.realpath(file)]) != root:
            raise DataError(f"{shown(file)} leaves the data folder {shown(root)}; put the file itself inside")


def _classes(value) -> Iterator[str]:
    """The dotted class names anywhere in a `features.json`."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and key.replace("_", "").lower() in _CLASS_KEYS and "." in item:
                yield item
            yield from _classes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _classes(item)
