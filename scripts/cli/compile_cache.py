"""Compiled programs on disk: what one run compiled, the next one loads.

The folder is `.jax_cache` beside the workdir, `--compile_cache` names another, and JAX's own environment variable
JAX_COMPILATION_CACHE_DIR is left to JAX. A cached program is the machine code that was compiled, and gives the same
bits. Several processes may share a folder. Nothing that is wrong with it stops a run.

What is loaded from the folder is run: it should be writable for no one who is not trusted. `.jax_cache` is made for its
owner alone, and not used where others can write it; with a folder that the user names they say that it is trusted.
"""

import contextlib
import os
import re
import stat
import sys
import warnings
from pathlib import Path

from linseed.scripts.cli import command

COMPILE_CACHE = command.define_path(
    "compile_cache",
    None,
    "Folder of compiled programs, for the runs after this one; '' for none; .jax_cache beside --workdir unless given.",
)
NAME = ".jax_cache"
MOST_BYTES = 2**30
_TROUBLE = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(.*?)': (.*)", re.DOTALL)


def use(*, workdir: Path | None):
    """Turns the cache on for this process; to be called before its first program is compiled.

    workdir: of the run; None where there is none, and then there is no cache but one that a flag names.
    """
    if not command.DEBUG.value:
        # On some processors XLA complains about every program of its own that it loads. Errors still are exceptions.
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
        _warn(f"{trouble}; programs are compiled anew, --compile_cache=DIR names another folder for them")
        return
    if COMPILE_CACHE.value is None:
        with contextlib.suppress(OSError):  # JAX will say so
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prune(folder, most_bytes=MOST_BYTES)
    _mend_quietly(folder)
    settings = {
        "compilation_cache_dir": str(folder),
        "persistent_cache_min_compile_time_secs": 0.0,  # a start is made of many small programs
        "persistent_cache_min_entry_size_bytes": -1,
        # XLA's own caches of GPU tuning: their path would become a part of each key, and damage to them an error.
        "persistent_cache_enable_xla_caches": "none",
    }
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)


def prune(folder: Path, *, most_bytes: int):
    """Deletes the programs in `folder` that were not used for longest, until the rest have at most `most_bytes`.

    Last use is when the file was read, where the file system keeps that, or else written.
    """
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process prunes as well
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > most_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def _unusable(folder, *, named):
    """What is wrong with `folder`, "" if nothing is; it need not exist. named: by the user, who trusts it."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file, no folder of compiled programs"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    if nearest == folder and not named and folder.stat().st_uid != os.getuid():
        return f"{folder} belongs to someone else"
    if nearest == folder and not named and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written by others, until you chmod go-w it"
    return ""


def _mend_quietly(folder):
    """JAX goes on without a program that it cannot read or write, and says so in a warning: one line of it will do.

    It never writes over a damaged file, so that this is deleted, and the program that is compiled now takes its place.
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
            _warn(f"a compiled program in {folder} could not be read or written ({trouble[2]}); compiled anew")

    warnings.showwarning = show
    warnings.filterwarnings("always", message=_TROUBLE.pattern.partition(" entry")[0])


def _warn(line):
    print("warning: " + " ".join(line.split()), file=sys.stderr)
