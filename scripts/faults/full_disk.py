"""A disk that fills up in the middle of a run: a tmpfs of a few megabytes, and a file that fills it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = 2**22  # bytes


class NoMountError(Exception):
    """This machine, or this user, may not mount a tmpfs."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `SIZE` at `folder`, which it creates; raises NoMountError without the permission to mount."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NoMountError(str(error)) from error
    if done.returncode:
        raise NoMountError(done.stderr.strip() or "mount failed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)


class Filler:
    """A file that takes all free space of a disk, and gives it back."""

    def __init__(self, disk: Path):
        self._path = disk / "filler"

    def fill(self):
        """Writes until no byte is free."""
        with self._path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self):
        """Frees the space."""
        self._path.unlink()
