"""JAX's compilation cache on disk: a run loads the programs that an earlier run compiled.

The folder is `.jax_cache` next to the workdir; `--compile_cache` names another. If JAX_COMPILATION_CACHE_DIR is set,
JAX uses that folder. A cached program is the compiled machine code and gives the same bits. Several processes may share
a folder. A problem with the folder never stops a run.

Programs in the folder are executed, so only trusted users may write to it. `.jax_cache` is created for its owner alone,
and not used if others can write to it. A folder that the user names is trusted.
"""

import contextlib
import os
import re
import stat
import warnings
from pathlib import Path

from linseed.scripts.cli import command

COMPILE_CACHE = command.define_path(
    "compile_cache",
    None,
    "Folder that keeps compiled programs for later runs; '' for none; .jax_cache next to --workdir unless given.",
)
NAME = ".jax_cache"
MOST_BYTES = 2**30
_TROUBLE = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(.*?)': (.*)", re.DOTALL)


def use(*, workdir: Path | None):
    """Turns the cache on for this process; call it before the first program is compiled.

    workdir: the run's; with None there is no cache unless the flag names a folder.
    """
    if not command.DEBUG.value:
        # On some processors XLA warns about each program that it loads. Errors are still exceptions.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _turn_on(workdir)


def _turn_on(workdir):
    import jax

    if COMPILE_CACHE.value == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if COMPILE_CACHE.value is None and (workdir is None or jax.config.jax_compilation_cache_dir):
        return
    folder = Path(os.path.abspath(COMPILE_CACHE.value or workdir / ".." / NAME))
    trouble = _unusable(folder, named=COMPILE_CACHE.value is not None)
    if trouble:
        _warn(f"{trouble}; programs are compiled again; name another folder with --compile_cache=DIR")
        return
    if COMPILE_CACHE.value is None:
        with contextlib.suppress(OSError):  # JAX reports it
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prune(folder, most_bytes=MOST_BYTES)
    _mend_quietly(folder)
    settings = {
        "compilation_cache_dir": str(folder),
        "persistent_cache_min_compile_time_secs": 0.0,  # starting a run compiles many small programs
        "persistent_cache_min_entry_size_bytes": -1,
        # XLA's own GPU tuning caches: their path would become part of each key, and damage to them an error.
        "persistent_cache_enable_xla_caches": "none",
    }
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)


def prune(folder: Path, *, most_bytes: int):
    """Deletes the least recently used programs in `folder`, until the rest take at most `most_bytes`.

    Last use is the last read, if the file system records it, or the last write.
    """
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may prune too
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > most_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def _unusable(folder, *, named):
    """Why `folder` cannot be used, "" if it can; it need not exist. named: the user named it, and so trusts it."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if folder.is_symlink() and not named:
        return f"{folder} is a link"
    if not nearest.is_dir():
        return f"{nearest} is a file, not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{folder} is not writable"
    if nearest == folder and not named and folder.stat().st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if nearest == folder and not named and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written by others until you run chmod go-w on it"
    return ""


def _mend_quietly(folder):
    """Turns JAX's warnings about programs that it cannot read or write into one line, and deletes these programs.

    JAX goes on without them but never overwrites a damaged file. Once deleted, the newly compiled program takes its
    place.
    """
    shown = warnings.showwarning
    said = set()

    def show(message, *arguments, **kwargs):
        trouble = _TROUBLE.match(str(message))
        if not trouble:
            return shown(message, *arguments, **kwargs)
        with contextlib.suppress(OSError):
            for path in folder.glob(f"{trouble[1]}-*-cache"):
                path.unlink(missing_ok=True)
        if not said:
            said.add(trouble[1])
            _warn(f"a compiled program in {folder} could not be read or written ({trouble[2]}); compiled again")

    warnings.showwarning = show
    warnings.filterwarnings("always", message=_TROUBLE.pattern.partition(" entry")[0])


def _warn(line):
    command.tell("warning: " + " ".join(line.split()))
