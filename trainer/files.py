"""The files of a run: complete, on the disk, and never read or written through a link.

Somebody else may have made the folder, so any name in it can be a link to a file of the user's. All of `trainer/`
writes files here. Links that lead to the folder that the user names are followed, links below it are refused.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from linseed.trainer.errors import WorkdirError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")

_held: dict[Path, int] = {}  # folder -> its descriptor


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """While entered, nothing is written into `folder`, at any depth, once it is not at its path any more."""
    folder = folder.absolute()
    with _folder(folder) as descriptor:
        _held[folder] = descriptor
        try:
            yield
        finally:
            del _held[folder]


def check(folder: Path):
    """Raises WorkdirError if `folder` or one above it is held and was deleted, moved or replaced since."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place not in _held:
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(place), os.fstat(_held[place])):
                continue
        raise WorkdirError(
            f"{place} was deleted, moved or replaced while this command used it; put it back and run the same command "
            "again, or run it in another --workdir"
        )


def make(folder: Path):
    """Makes `folder`, and those above it, where they are missing."""
    with _folder(folder, made=True):
        pass


def clean(folder: Path):
    """Deletes the temporary files that a kill left in `folder`. Only for the one process that writes there."""
    with _folder(folder) as descriptor:
        for name in filter(_TEMPORARY.fullmatch, os.listdir(descriptor)):
            os.unlink(name, dir_fd=descriptor)


def read(path: Path) -> bytes | None:
    """The content of `path`, or None if there is no such file."""
    try:
        with _folder(path.parent) as folder, os.fdopen(_open(path, os.O_RDONLY, folder=folder), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: Path, content: str | bytes):
    """Writes `content` to `path`. A kill or a power cut leaves the old file or the new one, never a part."""
    content = content.encode(errors="replace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with _folder(path.parent) as folder:
        try:
            descriptor = _open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary.name, dir_fd=folder)
            raise
        os.fsync(folder)


def append(path: Path) -> TextIO:
    """`path`, opened to add text at its end; made where it is missing."""
    with _folder(path.parent) as folder:
        descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, folder=folder)
        os.fsync(folder)
    return os.fdopen(descriptor, "a", encoding="utf-8")


@contextlib.contextmanager
def appending(path: Path, *, keep: Callable[[BinaryIO], int]) -> Iterator[BinaryIO]:
    """`path`, opened for this process alone to add bytes at its end; made where it is missing.

    keep: reads what it holds and returns how many bytes of it are whole; the rest, which a kill left, is cut off. Empty
    at the end, it is deleted. Raises BlockingIOError while another process has it open so.
    """
    with _folder(path.parent) as folder:
        descriptor = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, folder=folder)
        os.fsync(folder)
    with os.fdopen(descriptor, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        file.truncate(keep(file))
        try:
            yield file
        finally:
            file.flush()
            os.fsync(file.fileno())
            if not os.fstat(file.fileno()).st_size:
                delete(path)


def move(path: Path, to: Path):
    """Gives a file or folder another name, under which there is nothing yet."""
    with _folder(path.parent) as old, _folder(to.parent) as new:
        if os.path.lexists(to):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(to))
        os.rename(path.name, to.name, src_dir_fd=old, dst_dir_fd=new)
        os.fsync(new)
        os.fsync(old)


def delete(path: Path):
    """Deletes the file `path`, if there is one. Of a link it deletes the link alone."""
    with _folder(path.parent) as folder, contextlib.suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=folder)
        os.fsync(folder)


def sync(folder: Path):
    """Forces all files and folders below `folder` to the disk, then the folder itself and its name."""
    with _folder(folder) as top, _folder(folder.parent) as parent:
        for root, _, names, descriptor in os.fwalk(".", topdown=False, dir_fd=top):
            for name in names:
                file = _open(folder / root / name, os.O_RDONLY, folder=descriptor)
                os.fsync(file)
                os.close(file)
            os.fsync(descriptor)
        os.fsync(parent)


def refuse_links(*paths: Path):
    """Raises WorkdirError if one of `paths`, which a library is about to write, is a link."""
    for path in paths:
        if path.is_symlink():
            raise _link(path)


@contextlib.contextmanager
def _folder(path: Path, *, made: bool = False) -> Iterator[int]:
    """A descriptor of the folder `path`, which is made if `made`. No link below a held folder is followed."""
    path = path.absolute()
    check(path)
    upward = (path, *path.parents)
    start = next((place for place in upward if place in _held), None)
    start = start or next(place for place in upward if place.is_dir())
    descriptor = os.dup(_held[start]) if start in _held else os.open(start, _FOLDER)
    try:
        for place in reversed(upward[: upward.index(start)]):
            if made:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place.name, dir_fd=descriptor)
                    os.fsync(descriptor)
            inner = _opened(place, _FOLDER, folder=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path, flags, *, folder):
    """A descriptor of the plain file `path` in the open `folder`."""
    descriptor = _opened(path, flags | os.O_NONBLOCK, folder=folder)  # a pipe must not make it wait
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WorkdirError(f"{path} is not a plain file; move it away, or choose another --workdir")
    return descriptor


def _opened(path, flags, *, folder):
    try:
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise _link(path) from None
        error.filename = str(path)
        raise


def _link(path):
    return WorkdirError(
        f"{path} is a link, and no file of a run is read or written through one; put what it points to in its place, "
        "or choose another --workdir"
    )
