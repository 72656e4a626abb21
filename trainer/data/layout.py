"""Which folders of a data folder are splits and classes: judged by their names and by what they hold."""

import contextlib
import os
import re
import unicodedata
from typing import NamedTuple

from linseed.trainer.data.decode import shown
from linseed.trainer.errors import DataError

SPLITS = ("train", "val", "test")

# What systems leave behind, in lower case, besides hidden files and folders.
_LITTER = frozenset(
    (
        "#recycle",
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "__pycache__",
        "icon\r",
        "lost+found",
        "system volume information",
    )
)

# Endings of files that go with images and are none. Any other file is taken for an image, and refused if it is none.
_NO_IMAGES = frozenset(
    ".aae .avi .csv .db .doc .docx .htm .html .ini .ipynb .json .jsonl .lnk .log .m4v .md .md5 .mov .mp4 .pdf .py .rtf"
    " .sha256 .thm .tsv .txt .url .xls .xlsx .xml .xmp .yaml .yml".split()
)

# The file that every folder of a run holds (`run.workdir.lock`).
_RUN_LOCK = "lock"

# A name means a split if it consists of one of these words, and of others that say no more.
_WORDS = {
    "train": "train|training",
    "val": "val|valid|validation|dev",
    "test": "test|testing|holdout|heldout",
}
_FILLERS = r"(?:data|files?|folder|images?|imgs?|labels?|photos?|pics|pictures?|seg|set|split|[\W_\d])*"

_NAMES_IN_MESSAGE = 3


class Inside(NamedTuple):
    """What a folder holds, in order: files that should be images, folders, and the names that are passed over."""

    files: list[os.DirEntry]
    folders: list[os.DirEntry]
    passed_over: list[str]


def look_into(path: str) -> Inside:
    """Lists a folder. Hidden entries, litter, files that go with images, and folders of runs are passed over.

    Raises DataError for a folder that cannot be listed.
    """
    inside = Inside([], [], [])
    try:
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be listed ({error.strerror}); allow it, or move it away") from error
    for entry in entries:
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        if is_passed_over(entry.name, is_folder=is_folder) or is_folder and _holds_runs(entry.path):
            inside.passed_over.append(entry.name)
        else:
            (inside.folders if is_folder else inside.files).append(entry)
    return inside


def is_passed_over(name: str, *, is_folder: bool) -> bool:
    """Whether a file or folder of this name is hidden, litter, or goes with images and is none."""
    name = name.lower()
    return name.startswith(".") or name in _LITTER or not is_folder and os.path.splitext(name)[1] in _NO_IMAGES


def folder_names(path: str) -> list[str]:
    """The names of the folders in `path` that are not passed over, in order."""
    return [entry.name for entry in look_into(path).folders]


def _holds_runs(path, *, levels=2):
    """Whether `path` is the folder of a run, or holds such folders alone, down to so many levels."""
    if os.path.isfile(os.path.join(path, _RUN_LOCK)):
        return [entry.name for entry in look_into(path).files] == [_RUN_LOCK]
    found = False
    with contextlib.suppress(OSError), os.scandir(path) as scan:  # `look_into` reports it
        for entry in scan:
            if entry.name.startswith("."):
                continue
            if not (levels and entry.is_dir(follow_symlinks=False) and _holds_runs(entry.path, levels=levels - 1)):
                return False
            found = True
    return found


def meant_split(name: str) -> str:
    """The split that `name` means, or "": "Test", "test_set" and "testing-images" mean "test"."""
    name = name.casefold()
    return next((split for split in SPLITS if re.fullmatch(f"{_FILLERS}(?:{_WORDS[split]}){_FILLERS}", name)), "")


def find_splits(root: str) -> tuple[dict[str, str], list[str]]:
    """{split: its folder}, and the folders beside train/ that are no split; {"train": ""} if root holds the classes.

    A folder is a split by its name in any case. Raises DataError for one that is a split by another name, or that looks
    like one by what it holds.
    """
    folders = folder_names(root)
    meant = {name: meant_split(name) for name in folders if meant_split(name)}
    for name in meant:
        _check_holds_folders(root, name)
    where = {}
    for split in SPLITS:
        names = [name for name, other in meant.items() if other == split]
        if len(names) > 1:
            raise DataError(
                f"{shown(root)} holds {listed(names)}, which mean the same split; put what belongs to it into one"
                f" folder '{split}', and move the others out of {shown(root)}"
            )
        if names:
            where[split] = names[0]
    wrong = {split: name for split, name in where.items() if name.lower() != split}
    if wrong:
        cure = ", ".join(f"'{shown(name)}' to '{split}'" for split, name in wrong.items())
        raise DataError(f"{shown(root)} holds {listed(wrong.values())}; rename {cure}")
    if where and "train" not in where:
        raise DataError(f"{shown(root)} holds val/ or test/ and no train/; put the training classes in train/")
    if not where:
        return {"train": ""}, []
    others = [name for name in folders if name not in meant]
    for name in others:
        _check_holds_no_classes(root, name, train=where["train"])
    return where, others


def _check_holds_folders(root, name):
    inside = look_into(os.path.join(root, name))
    if inside.files and not inside.folders:
        raise DataError(
            f"{shown(os.path.join(root, name))} has the name of a split and holds images, no class folders; put the"
            f" images of each class into a folder of their own in it; or, if '{shown(name)}' is a class, move all class"
            " folders into a new folder, and name that 'train'"
        )


def _check_holds_no_classes(root, name, *, train):
    classes = {same_name(each) for each in folder_names(os.path.join(root, train))}
    shared = [each for each in folder_names(os.path.join(root, name)) if same_name(each) in classes]
    if shared:
        raise DataError(
            f"{shown(root)} holds '{shown(name)}', with the classes {listed(shared)} of {train}/; if it is a split,"
            f" rename it to 'val' or 'test', otherwise move it out of {shown(root)}"
        )


def same_name(name: str) -> str:
    """What is equal for two names that differ in case or in how they encode accents, as names from a Mac do."""
    return unicodedata.normalize("NFC", name).casefold()


def counted(number: int, noun: str) -> str:
    """ "1 entry", "2 entries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def listed(names) -> str:
    """The first of `names`, in quotes, and how many more there are."""
    names = list(names)
    first = ", ".join(f"'{shown(name)}'" for name in names[:_NAMES_IN_MESSAGE])
    return first + (f" and {len(names) - _NAMES_IN_MESSAGE} more" if len(names) > _NAMES_IN_MESSAGE else "")
