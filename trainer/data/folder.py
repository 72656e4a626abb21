"""Class folders: `<class>/<image>`, with or without `train/`, `val/` and `test/` above them."""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from trainer.data.decode import FORMATS, decode_image
from trainer.data.source import Source, carve_test, empty_images
from trainer.data.splits import Split
from trainer.errors import ConfigError, DataError, unknown_name

ON_BAD_IMAGE = ("error", "skip")

# Folders that hold a split by another name. Taken for classes, or left out in
# silence, they would spoil a run; so they are named in an error.
_MISNAMED = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}

_FILES_PER_TASK = 64
_NAMES_IN_ERROR = 3

_log = logging.getLogger(__name__)


class _Files(NamedTuple):
    """The files of a split, not yet read: paths relative to root, labels int32 [N], and the refused by path."""

    paths: list[str]
    labels: np.ndarray
    refused: dict[str, str]


class _Size(NamedTuple):
    """The size that images must have, and the file that set it."""

    height: int
    width: int
    set_by: str


def folder(*, root: str, image_size: int, test_fraction: float, split_seed: int, on_bad_image: str) -> Source:
    """Reads class folders under `root` as RGB.

    `root` holds `train/`, and perhaps `val/` and `test/`, each with one folder per
    class; or the class folders themselves. Without `test/`, a stratified test
    split of `test_fraction` is carved from the list of files by `split_seed`
    before any image is read; with `test/`, both are unused. The sorted names of
    the class folders give the labels, and the sorted file names the order. Hidden
    files and folders (`.name`) are passed over. `image_size` in pixels: see
    `decode.decode_image`; 0 keeps the images as they are, and they must then be of one
    size.

    An image that cannot be decoded, or a link that leads out of `root`, is bad:
    `on_bad_image` "error" raises, "skip" leaves it out and lists it in `skipped`
    (in the test split: in the log, at level WARNING). Raises DataError for data
    that is missing, bad or not in this layout.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise ConfigError(unknown_name("config.data.source.on_bad_image", on_bad_image, ON_BAD_IMAGE))
    if image_size < 0:
        raise ConfigError(f"config.data.source.image_size is {image_size}; set it to 0 (keep) or a size in pixels")
    root = _checked_root(root)
    class_names, files = _list_splits(root)
    if "test" not in files:
        files["train"], files["test"] = _carve(
            files["train"], class_names, test_fraction=test_fraction, split_seed=split_seed
        )

    size = _Size(image_size, image_size, "config.data.source.image_size") if image_size else None
    size = size or _first_size(root, files["train"])
    splits, bad = {}, {}
    for name in sorted(files.keys() - {"test"}):
        splits[name], bad_here = _read(root, files[name], image_size=image_size, size=size)
        bad |= bad_here
    if bad and on_bad_image == "error":
        raise DataError(_describe_bad(root, bad, total=sum(len(files[name].paths) for name in splits)))
    _check_classes_left(root, splits["train"], class_names)
    if "val" in splits and not len(splits["val"].labels):
        raise DataError(f"no image in {_shown(root)}/val can be read; mend them, or delete the folder")

    return Source(
        train=splits["train"],
        val=splits.get("val"),
        open_test=functools.partial(
            _open_test, root, files["test"], image_size=image_size, size=size, on_bad_image=on_bad_image
        ),
        class_names=class_names,
        skipped=tuple(f"{_shown(path)}: {reason}" for path, reason in bad.items()),
    )


def _checked_root(root: str) -> str:
    """The real path of `root`."""
    if not root:
        raise DataError("config.data.source.root is empty; set it to the folder that holds the class folders")
    path = os.path.realpath(os.path.expanduser(root))
    if not os.path.isdir(path):
        raise DataError(f"no folder at {_shown(path)}; set config.data.source.root to one that holds class folders")
    return path


def _list_splits(root: str) -> tuple[tuple[str, ...], dict[str, _Files]]:
    """The class names, and the files of "train" and, where they are, of "val" and "test"."""
    found = _folders(root)
    for name in found:
        if name.lower() in _MISNAMED:
            raise DataError(f"{_shown(root)} holds '{_shown(name)}'; rename that folder to '{_MISNAMED[name.lower()]}'")
    if "train" in found:
        where = {name: name for name in ("train", "val", "test") if name in found}
    elif {"val", "test"} & set(found):
        raise DataError(f"{_shown(root)} holds val/ or test/ and no train/; put the training classes in train/")
    else:
        where = {"train": ""}

    class_names = tuple(_folders(os.path.join(root, where["train"])))
    if not class_names:
        raise DataError(
            f"{_shown(os.path.join(root, where['train']))} holds no class folders; put the images of each class in a"
            " folder of its own, named for the class"
        )
    if len(class_names) == 1:
        raise DataError(
            f"{_shown(root)} holds one class, '{_shown(class_names[0])}'; a classifier needs at least two folders"
        )
    return class_names, {name: _list_files(root, path, class_names) for name, path in where.items()}


def _list_files(root: str, below: str, class_names: Sequence[str]) -> _Files:
    """The files of the class folders in `root/below`, by class and then by name."""
    if not _stays_inside(root, os.path.join(root, below)):
        raise DataError(f"{below}/ is a link that leaves {_shown(root)}; put the folder itself there")
    folders = _folders(os.path.join(root, below))
    for name in folders:
        if name not in class_names:
            raise DataError(f"{below}/ holds class '{_shown(name)}', which train/ does not; rename or remove it")
    if not folders:
        raise DataError(f"{_shown(os.path.join(root, below))} holds no class folders; fill it, or delete it")
    paths, labels, refused = [], [], {}
    for name in folders:
        class_folder = f"{below}/{name}" if below else name
        entries = _list_class(root, class_folder)
        if not entries:
            raise DataError(f"class folder {_shown(class_folder)} holds no images; fill it, or delete it")
        paths += entries
        labels += [class_names.index(name)] * len(entries)
        refused |= {path: reason for path, reason in entries.items() if reason}
    return _Files(paths, np.asarray(labels, np.int32), refused)


def _list_class(root: str, class_folder: str) -> dict[str, str]:
    """The paths in a class folder, sorted, each with the reason not to read it or ''."""
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
            elif not entry.is_file():  # Also pipes and devices, whose reading might never end.
                reason = "not a file"
            entries[f"{class_folder}/{entry.name}"] = reason
    return entries


def _folders(path: str) -> list[str]:
    with os.scandir(path) as scan:
        return sorted(entry.name for entry in scan if entry.is_dir() and not entry.name.startswith("."))


def _stays_inside(root: str, path: str) -> bool:
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def _carve(
    files: _Files, class_names: Sequence[str], *, test_fraction: float, split_seed: int
) -> tuple[_Files, _Files]:
    for label, count in enumerate(np.bincount(files.labels)):
        if count < 2:
            raise DataError(
                f"class '{_shown(class_names[label])}' has 1 image, too few to carve a test split; add images, or a"
                " test/ folder beside train/"
            )
    parts = carve_test(files.labels, test_fraction=test_fraction, split_seed=split_seed)
    train, test = (_Files([files.paths[i] for i in part], files.labels[part], files.refused) for part in parts)
    return train, test


def _open_test(root: str, files: _Files, *, image_size: int, size: _Size, on_bad_image: str) -> Split:
    test, bad = _read(root, files, image_size=image_size, size=size)
    if bad and (on_bad_image == "error" or not len(test.labels)):
        raise DataError(_describe_bad(root, bad, total=len(files.paths)))
    if bad:
        _log.warning("left out %d of %d test images: %s", len(bad), len(files.paths), _name_first(bad))
    return test


def _first_size(root: str, files: _Files) -> _Size:
    """The size of the first image that can be read."""
    bad = {}
    for path in files.paths:
        with _quiet_decoders():
            image, reason = _decode_or_reason(root, path, files.refused, image_size=0)
        if image is not None:
            return _Size(*image.shape[:2], _shown(path))
        bad[path] = reason
    raise DataError(_describe_bad(root, bad, total=len(files.paths)))


def _read(root: str, files: _Files, *, image_size: int, size: _Size) -> tuple[Split, dict[str, str]]:
    """The images that can be read, and for each other path the reason."""
    count = len(files.paths)
    images = empty_images(count, height=size.height, width=size.width, channels=3)
    good = np.ones(count, bool)

    def read_some(start: int) -> dict[str, str]:
        bad = {}
        for i in range(start, min(start + _FILES_PER_TASK, count)):
            path = files.paths[i]
            image, reason = _decode_or_reason(root, path, files.refused, image_size=image_size)
            if image is None:
                bad[path] = reason
                good[i] = False
                continue
            if image.shape[:2] != (size.height, size.width):
                raise DataError(
                    f"images differ in size: {size.set_by} is {size.height}x{size.width} and {_shown(path)} is"
                    f" {image.shape[0]}x{image.shape[1]}; set config.data.source.image_size to resize them"
                )
            images[i] = image
        return bad

    bad = {}
    with _quiet_decoders(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for some in pool.map(read_some, range(0, count, _FILES_PER_TASK)):
            bad |= some
    return Split(images[good], files.labels[good]) if bad else Split(images, files.labels), bad


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Silences Pillow, which warns of odd metadata, and of large images, which `decode_image` refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_or_reason(
    root: str, path: str, refused: dict[str, str], *, image_size: int
) -> tuple[np.ndarray | None, str]:
    if path in refused:
        return None, refused[path]
    try:
        return decode_image(os.path.join(root, path), image_size=image_size), ""
    except UnidentifiedImageError:
        return None, f"not a whole image of a known format ({', '.join(FORMATS)})"
    except Exception as error:  # On damaged bytes a decoder may raise anything.
        return None, _shown(" ".join(str(error).split())) or type(error).__name__


def _check_classes_left(root: str, train: Split, class_names: Sequence[str]) -> None:
    counts = np.bincount(train.labels, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if not count:
            raise DataError(f"no training image of class '{_shown(name)}' in {_shown(root)} can be read; mend them")


def _describe_bad(root: str, bad: dict[str, str], *, total: int) -> str:
    return (
        f"{len(bad)} of {total} images in {_shown(root)} cannot be read: {_name_first(bad)}; mend or delete"
        " them, or leave them out with config.data.source.on_bad_image=skip"
    )


def _name_first(bad: dict[str, str]) -> str:
    first = [f"{_shown(path)} ({reason})" for path, reason in list(bad.items())[:_NAMES_IN_ERROR]]
    return ", ".join(first + ["..."] * (len(bad) > _NAMES_IN_ERROR))


def _shown(text: str) -> str:
    """`text` fit for one line: file names may hold line ends and undecodable bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
