"""Lists the files of class folders before any image is read."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from linseed.trainer.data.dataset import carve_test
from linseed.trainer.data.decode import check_header, check_is_bad, shown, why_bad
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import cores

ON_BAD_IMAGE = ("error", "skip")

# Folders that hold a split under another name. Taken as classes or ignored, they would spoil a run; so they are an
# error.
_MISNAMED = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}

_NAMES_IN_ERROR = 3

# A run that has begun goes on with the same train and validation images only. Its test images may change, if told so.
CURE = (
    "repair them; before the first checkpoint you may also delete them, or skip them with "
    "--config.data.source.on_bad_image=skip"
)
CURE_IN_TEST = (
    "train again with --config.data.source.on_bad_image=skip --on_config_change=accept, which leaves them out, or "
    "repair them and train again with --on_config_change=accept"
)


class Files(NamedTuple):
    """The files of a split, not yet read: paths relative to root, labels int32 [N], and {path: reason refused}."""

    paths: list[str]
    labels: np.ndarray
    refused: dict[str, str]


def checked_root(root: str) -> str:
    """The real path of `root`."""
    if not root:
        raise DataError("config.data.source.root is empty; set it to the folder that holds the class folders")
    path = os.path.realpath(os.path.expanduser(root))
    if not os.path.isdir(path):
        raise DataError(f"no folder at {shown(path)}; set config.data.source.root to one that holds class folders")
    return path


def list_splits(root: str) -> tuple[tuple[str, ...], dict[str, Files]]:
    """The class names, and the files of "train" and, if present, of "val" and "test"."""
    found = _folders(root)
    for name in found:
        if name.lower() in _MISNAMED:
            raise DataError(f"{shown(root)} holds '{shown(name)}'; rename that folder to '{_MISNAMED[name.lower()]}'")
    if "train" in found:
        where = {name: name for name in ("train", "val", "test") if name in found}
    elif {"val", "test"} & set(found):
        raise DataError(f"{shown(root)} holds val/ or test/ and no train/; put the training classes in train/")
    else:
        where = {"train": ""}

    class_names = tuple(_folders(os.path.join(root, where["train"])))
    if not class_names:
        raise DataError(
            f"{shown(os.path.join(root, where['train']))} holds no class folders; put the images of each class in a"
            " folder with the name of the class"
        )
    if len(class_names) == 1:
        raise DataError(
            f"{shown(root)} holds one class, '{shown(class_names[0])}'; a classifier needs at least two folders"
        )
    return class_names, {name: _list_files(root, path, class_names) for name, path in where.items()}


def _list_files(root: str, below: str, class_names: Sequence[str]) -> Files:
    """The files of the class folders in `root/below`, sorted by class and name."""
    if not _stays_inside(root, os.path.join(root, below)):
        raise DataError(f"{below}/ is a link that leaves {shown(root)}; put the folder there instead of the link")
    folders = _folders(os.path.join(root, below))
    for name in folders:
        if name not in class_names:
            raise DataError(f"{below}/ holds class '{shown(name)}', which train/ does not; rename or remove it")
    if not folders:
        raise DataError(f"{shown(os.path.join(root, below))} holds no class folders; fill it, or delete it")
    paths, labels, refused = [], [], {}
    for name in folders:
        class_folder = f"{below}/{name}" if below else name
        entries = _list_class(root, class_folder)
        if not entries:
            raise DataError(f"class folder {shown(class_folder)} holds no images; fill it, or delete it")
        paths += entries
        labels += [class_names.index(name)] * len(entries)
        refused |= {path: reason for path, reason in entries.items() if reason}
    return Files(paths, np.asarray(labels, np.int32), refused)


def _list_class(root: str, class_folder: str) -> dict[str, str]:
    """The paths in a class folder, sorted, each with the reason not to read it, or ''."""
    if not _stays_inside(root, os.path.join(root, class_folder)):
        return {class_folder: "leaves the data folder"}
    entries = {}
    with os.scandir(os.path.join(root, class_folder)) as scan:
        for entry in sorted(scan, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            reason = ""
            if entry.is_symlink() and not _stays_inside(root, entry.path):
                reason = "leaves the data folder"
            elif not entry.is_file():  # also pipes and devices: reading them might never end
                reason = "not a file"
            entries[f"{class_folder}/{entry.name}"] = reason
    return entries


def _folders(path: str) -> list[str]:
    with os.scandir(path) as scan:
        return sorted(entry.name for entry in scan if entry.is_dir() and not entry.name.startswith("."))


def _stays_inside(root: str, path: str) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def carve(files: Files, class_names: Sequence[str], *, test_fraction: float, split_seed: int) -> tuple[Files, Files]:
    for label, count in enumerate(np.bincount(files.labels)):
        if count < 2:
            raise DataError(
                f"class '{shown(class_names[label])}' has 1 image, too few to carve a test split; add images, or a"
                " test/ folder next to train/"
            )
    parts = carve_test(files.labels, test_fraction=test_fraction, split_seed=split_seed)
    train, test = (Files([files.paths[i] for i in part], files.labels[part], files.refused) for part in parts)
    return train, test


def fingerprint(root: str, files: Files) -> str:
    """sha256 of the names, sizes and labels of `files`; no file is read."""
    digest = hashlib.sha256(files.labels.tobytes())
    for path in files.paths:
        size = -1 if path in files.refused else os.stat(os.path.join(root, path)).st_size
        digest.update(os.fsencode(path) + b"\0%d\0" % size)
    return digest.hexdigest()


def check_headers(root: str, files: Files):
    """Raises DataError that names the files of the test split that do not begin as an image; reads no pixel."""

    def reason(path):
        try:
            check_header(os.path.join(root, path))
        except Exception as error:  # a decoder may raise anything on damaged bytes
            check_is_bad(error, path)
            return why_bad(error)
        return ""

    bad = dict(files.refused)
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")
        rest = [path for path in files.paths if path not in bad]
        bad |= {path: why for path, why in zip(rest, pool.map(reason, rest), strict=True) if why}
    bad = {path: bad[path] for path in files.paths if path in bad}
    if bad:
        raise DataError(describe_bad(root, bad, total=len(files.paths), cure=CURE_IN_TEST))


def describe_bad(root: str, bad: dict[str, str], *, total: int, cure: str) -> str:
    return f"{len(bad)} of {total} images in {shown(root)} cannot be read: {name_first(bad)}; {cure}"


def name_first(bad: dict[str, str]) -> str:
    first = [f"{shown(path)} ({reason})" for path, reason in list(bad.items())[:_NAMES_IN_ERROR]]
    return ", ".join(first + ["..."] * (len(bad) > _NAMES_IN_ERROR))
