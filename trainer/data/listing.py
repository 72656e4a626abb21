"""Lists the files of class folders before any image is read."""

import hashlib
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from linseed.trainer.data import image_file, layout
from linseed.trainer.data.dataset import carve_test
from linseed.trainer.data.decode import attempt, check_header, shown
from linseed.trainer.data.layout import counted, folder_names, listed, look_into, same_name
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import cores

ON_BAD_IMAGE = ("error", "skip")

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


class Listing(NamedTuple):
    """A data folder. files: of "train", "test" and, if there is one, "val". notes: a line for each thing not used."""

    root: str
    class_names: tuple[str, ...]
    files: dict[str, Files]
    notes: tuple[str, ...]

    def check_refused(self):
        """Raises DataError for entries of train and val that are known to be no images before any is read."""
        files = [self.files[split] for split in self.files.keys() - {"test"}]
        bad = {path: each.refused[path] for each in files for path in each.paths if path in each.refused}
        if bad:
            raise DataError(describe_bad(self.root, bad, total=sum(len(each.paths) for each in files), cure=CURE))


def list_folder(root: str, *, test_fraction: float, split_seed: int) -> Listing:
    """Lists class folders, and carves "test" from "train" if it has no folder: see `sources.folder.folder`.

    Raises DataError, which names the folder and the cure, for a layout that is not unambiguous.
    """
    root = _checked_root(root)
    where, unused = layout.find_splits(root)
    classes = folder_names(os.path.join(root, where["train"]))
    if not classes:
        raise DataError(
            f"{shown(os.path.join(root, where['train']))} holds no class folders; put the images of each class in a"
            " folder with the name of the class"
        )
    files, passed_over = {}, []
    for split, below in where.items():
        files[split], passed = _list_split(root, below, class_names=classes)
        passed_over += passed
    if len(classes) == 1:
        raise DataError(
            f"{shown(root)} holds one class, '{shown(classes[0])}'; a classifier needs at least two folders"
        )
    _check_enough(files, classes)
    notes = tuple(_notes(root, where, unused, passed_over))
    if "test" not in files:
        files["train"], files["test"] = _carve(files["train"], test_fraction=test_fraction, split_seed=split_seed)
    return Listing(root, tuple(classes), files, notes)


def _checked_root(root):
    if not root:
        raise DataError("config.data.source.root is empty; set it to the folder that holds the class folders")
    path = os.path.realpath(os.path.expanduser(root))
    if not os.path.isdir(path):
        raise DataError(f"no folder at {shown(path)}; set config.data.source.root to one that holds class folders")
    return path


def _list_split(root, below, *, class_names) -> tuple[Files, list[str]]:
    """The files of the class folders in `root/below`, sorted by class and name, and the names that were passed over."""
    if not _stays_inside(root, os.path.join(root, below)):
        raise DataError(
            f"{shown(below)}/ is a link that leaves {shown(root)}; put the folder there instead of the link"
        )
    folders = folder_names(os.path.join(root, below))
    if not folders:
        raise DataError(f"{shown(os.path.join(root, below))} holds no class folders; fill it, or delete it")
    labels_of = _labels_of(folders, class_names, below=below)
    paths, labels, refused, passed_over = [], [], {}, []
    for name, label in labels_of.items():
        class_folder = f"{below}/{name}" if below else name
        entries, passed = _list_class(root, class_folder)
        paths += entries
        labels += [label] * len(entries)
        refused |= {path: reason for path, reason in entries.items() if reason}
        passed_over += passed
    return Files(paths, np.asarray(labels, np.int32), refused), passed_over


def _labels_of(folders, class_names, *, below) -> dict[str, int]:
    """{folder: its label}: names are the same however they encode accents."""
    known = {unicodedata.normalize("NFC", name): label for label, name in enumerate(class_names)}
    if len(known) < len(class_names):
        raise DataError(
            f"two class folders of {shown(below) or 'the data folder'} have names that look the same; rename one"
        )
    found = {}
    for name in folders:
        label = known.get(unicodedata.normalize("NFC", name))
        if label is None:
            near = [other for other in class_names if same_name(other) == same_name(name)]
            cure = f"rename it to '{shown(near[0])}'" if near else "rename or remove it"
            raise DataError(f"{shown(below)}/ holds class '{shown(name)}', which train/ does not; {cure}")
        found[name] = label
    return found


def _list_class(root, class_folder) -> tuple[dict[str, str], list[str]]:
    """The paths in a class folder, sorted, each with the reason not to read it or "", and the names passed over."""
    if not _stays_inside(root, os.path.join(root, class_folder)):
        return {class_folder: "leaves the data folder"}, []
    inside = look_into(os.path.join(root, class_folder))
    if inside.folders and not inside.files:
        raise DataError(_too_deep(root, class_folder, [entry.name for entry in inside.folders]))
    if not inside.files:
        raise DataError(f"class folder {shown(class_folder)} holds no images; fill it, or move it out of {shown(root)}")
    reasons = {entry.name: "" if entry.is_file() else "not a file" for entry in inside.files}
    reasons |= {entry.name: "a folder; move its images up into the class folder" for entry in inside.folders}
    for entry in inside.files + inside.folders:
        if entry.is_symlink() and not _stays_inside(root, entry.path):
            reasons[entry.name] = "leaves the data folder"
    return {f"{class_folder}/{name}": reasons[name] for name in sorted(reasons)}, inside.passed_over


def _too_deep(root, class_folder, folders):
    path = os.path.join(root, class_folder)
    other_root = "" if "/" in class_folder else f", or set config.data.source.root={shown(path)}"
    return (
        f"{shown(path)} holds folders ({listed(folders)}) and no images; if these are the class folders, move them up"
        f" into {shown(os.path.dirname(path))}{other_root}; if not, move their images up into it"
    )


def _stays_inside(root: str, path: str) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def _check_enough(files, class_names):
    """A class needs an image for train, and one for each split that is to be carved."""
    carved = [split for split in ("val", "test") if split not in files]
    for name, count in zip(class_names, np.bincount(files["train"].labels, minlength=len(class_names)), strict=True):
        if count <= len(carved):
            raise DataError(
                f"class '{shown(name)}' has {counted(count, 'image')}, too few to carve"
                f" {' and '.join(carved)} from; add images until it has {len(carved) + 1}, or move its folder away"
            )


def _carve(files: Files, *, test_fraction: float, split_seed: int) -> tuple[Files, Files]:
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
        return attempt(lambda: check_header(os.path.join(root, path)), path)[1]

    bad = dict(files.refused)
    with image_file.quiet(), ThreadPoolExecutor(cores()) as pool:
        rest = [path for path in files.paths if path not in bad]
        bad |= {path: why for path, why in zip(rest, pool.map(reason, rest), strict=True) if why}
    bad = {path: bad[path] for path in files.paths if path in bad}
    if bad:
        raise DataError(describe_bad(root, bad, total=len(files.paths), cure=CURE_IN_TEST))


def _notes(root, where, unused, passed_over):
    """A line for each kind of thing in the data folder that is not used."""
    if unused:
        yield f"not used, no splits: {counted(len(unused), 'folder')} of {shown(root)} ({listed(unused)})"
    for below in sorted({"", *where.values()}):
        inside = look_into(os.path.join(root, below))
        passed_over = passed_over + inside.passed_over
        if inside.files:
            folder, names = shown(os.path.join(root, below)), listed(entry.name for entry in inside.files)
            yield f"not used, in no class folder: {counted(len(inside.files), 'file')} of {folder} ({names})"
    if passed_over:
        yield f"not used, no images: {counted(len(passed_over), 'entry')} of {shown(root)} ({listed(passed_over)})"


def describe_bad(root: str, bad: dict[str, str], *, total: int, cure: str) -> str:
    return f"{len(bad)} of {total} images in {shown(root)} cannot be read: {name_first(bad)}; {cure}"


def name_first(bad: dict[str, str]) -> str:
    first = [f"{shown(path)} ({reason})" for path, reason in list(bad.items())[:_NAMES_IN_ERROR]]
    return ", ".join(first + ["..."] * (len(bad) > _NAMES_IN_ERROR))
