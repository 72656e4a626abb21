"""A run's folder that holds links to files of the user's, and one that is taken away under the run."""

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from linseed.scripts.faults.damage import JUNK, LATEST, Bench, contents
from linseed.trainer.errors import LinseedError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet

LINKS = (*workdir_lib.FILES, f"{workdir_lib.CHECKPOINTS}/{LATEST}")
STEPS = (22, 24)  # after which the folder is taken away: before the last checkpoint, and before test is opened


def _moved(workdir):
    workdir.rename(workdir.with_name(f"{workdir.name}_moved"))


def _replaced(workdir):
    _moved(workdir)
    workdir.mkdir()


WAYS: dict[str, Callable[[Path], object]] = {"deleted": shutil.rmtree, "moved": _moved, "replaced": _replaced}


class _Taker(Quiet):
    """Takes the run's folder away once a step is logged and, if it was evaluated, saved: Orbax ends what it began."""

    def __init__(self, workdir, how, *, step):
        self._workdir, self._how, self._step = workdir, how, step

    def write(self, record):
        if record["step"] == self._step:
            while "val_loss" in record and not (self._workdir / workdir_lib.CHECKPOINTS / str(self._step)).exists():
                time.sleep(0.001)
            WAYS[self._how](self._workdir)


def link(bench: Bench, name: str) -> str:
    """Puts a link in place of a file or folder of a run; "" if the run is refused and what it leads to stays."""
    workdir = bench.another(bench.cut)
    path, outside = workdir / name, workdir.with_name(f"{workdir.name}_outside")
    outside.mkdir()
    if path.exists():
        path.rename(outside / "kept")
    else:
        (outside / "kept").write_bytes(JUNK)
    path.symlink_to(outside / "kept")
    before = contents(outside)
    wrong = _refused(bench, workdir, says=f"{name} is a link")
    return wrong if contents(outside) == before else "what the link leads to was changed"


def gone(bench: Bench, how: str, *, step: int) -> str:
    """Takes a run's folder away, as `WAYS` says; "" if the run ends and writes nothing into another one."""
    workdir = bench.another(bench.cut)
    taker = _Taker(workdir, how, step=step)
    wrong = _refused(bench, workdir, says="was deleted, moved or replaced", writer=taker)
    written = contents(workdir) if workdir.exists() else {}
    return wrong or (f"{sorted(written)} was written" if written else "")


def _refused(bench, workdir, *, says, writer=None):
    try:
        bench.go_on(workdir, writer=writer)
    except LinseedError as error:
        return "" if says in str(error) and "\n" not in str(error) else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it went on"


CASES: dict[str, Callable[[Bench], str]] = {
    **{f"link {name}": functools.partial(link, name=name) for name in LINKS},
    **{f"{how} at step {step}": functools.partial(gone, how=how, step=step) for how in WAYS for step in STEPS},
}
