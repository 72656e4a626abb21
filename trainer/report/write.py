"""`report.html`: one self-contained page per run, made only from the files in its workdir.

It is written at each evaluation and at the end. It never ends a run: an error is a warning.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from linseed.trainer import checksum, files
from linseed.trainer.data.splits import Split, count_openings
from linseed.trainer.errors import WorkdirError
from linseed.trainer.report import content, examples, page, predictions
from linseed.trainer.report.predictions import Collector
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.metrics_log import read_lines

_MOST_OF_TIME = 0.02  # that the page of a run that goes on may take

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_warns(what: str) -> Iterator[None]:
    """An error inside becomes a line of warning: a run does not end because `what` could not be made."""
    try:
        yield
    except Exception as error:
        line = " ".join(str(error).split())
        _log.warning("%s could not be made, which changes nothing in the run: %s: %s", what, type(error).__name__, line)


def keep(
    workdir: Path,
    *,
    val: Collector,
    test: Collector | None,
    split: Split,
    class_names: Sequence[str],
    saliency: Callable,
):
    """Writes what the page needs of the best checkpoint beside the result; an error is a warning.

    val, test: of the evaluations that the result is of; None where test stays sealed. split: of validation. saliency:
    as for `examples.examples`.
    """
    forget(workdir)
    with only_warns(workdir_lib.PREDICTIONS):
        found = val.predictions(temperature=val.temperature)
        splits = {"val": examples.with_sizes(found, split)}
        if test is not None:
            splits["test"] = test.predictions(temperature=val.temperature)
        predictions.write(workdir / workdir_lib.PREDICTIONS, splits, temperature=val.temperature)
        listed = examples.examples(found, split, saliency=saliency)
        examples.write(workdir / workdir_lib.EXAMPLES, {"class_names": list(class_names), **listed})


def forget(workdir: Path):
    """Deletes the page and what it was made of: the result that they belong to is not there yet."""
    for name in (workdir_lib.REPORT, workdir_lib.PREDICTIONS, workdir_lib.EXAMPLES):
        files.delete(workdir / name)


def write(workdir: Path):
    """Writes `report.html` of a run, finished or under way; an error is a warning."""
    with only_warns(workdir_lib.REPORT):
        files.write(workdir / workdir_lib.REPORT, page.render(content.content(_read(workdir))))


class Live:
    """Writes the page of a run that goes on, at each evaluation, but for at most 2 % of the time."""

    def __init__(self, workdir: Path):
        self._workdir, self._wait_until = workdir, -1.0

    def __call__(self):
        started = time.monotonic()
        if started >= self._wait_until:
            write(self._workdir)
            ended = time.monotonic()
            self._wait_until = ended + (ended - started) / _MOST_OF_TIME


def recount(workdir: Path) -> dict[str, Any] | None:
    """The result of the run in `workdir`, None without one. It and the report show the openings that are recorded."""
    result, openings = workdir_lib.read_result(workdir), count_openings(workdir / workdir_lib.OPENINGS)
    if result and result["test_openings"] != openings:
        result["test_openings"] = openings
        files.delete(workdir / workdir_lib.REPORT)
        workdir_lib.write_sealed(workdir / workdir_lib.RESULT, result)
    if result and not (workdir / workdir_lib.REPORT).exists():
        write(workdir)
    return result


@contextlib.contextmanager
def recounted(workdir: Path) -> Iterator[None]:
    """Calls `recount` at the end, whatever happens: an opening counts though its evaluation fails."""
    try:
        yield
    finally:
        with contextlib.suppress(WorkdirError):  # a damaged result is no reason to lose what was evaluated
            recount(workdir)


def _read(workdir):
    result, lines = workdir_lib.read_result(workdir), read_lines(workdir / workdir_lib.METRICS)
    records = [record for record in lines if record]
    last = records[-1]["step"] if records else 0
    found, temperature, listed = {}, float("nan"), {}
    if result:
        with only_warns(f"the part of {workdir_lib.REPORT} from {workdir_lib.PREDICTIONS}"):
            found, temperature = predictions.read(workdir / workdir_lib.PREDICTIONS)
        listed = examples.read(workdir / workdir_lib.EXAMPLES)
    return content.Files(
        config=workdir_lib.read_config(workdir),
        result=result,
        records=records,
        is_whole=None not in lines and (not result or last == result["steps"]),
        predictions=found,
        temperature=temperature,
        examples=listed,
        card=checksum.loads_or_old(files.read(workdir / workdir_lib.PRETRAINED) or b"") or {},
    )
