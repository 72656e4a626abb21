"""Classifies many files into a table, on from where an earlier call was stopped."""

import errno
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from linseed.trainer import files
from linseed.trainer.data.decode import shown
from linseed.trainer.errors import DataError
from linseed.trainer.portable.classifier import Classifier
from linseed.trainer.portable.table import Paths, Table, number_of

_NAMED = 5  # unreadable files that are named


class Count(NamedTuple):
    """What was done so far. there: lines that an earlier call left. seconds: since the first image was asked for."""

    predicted: int
    bad: int
    there: int
    seconds: float


def into_table(
    classifier: Classifier,
    paths: Iterable[str],
    out: Path,
    *,
    top: int,
    part: tuple[int, int],
    batch_size: int | None,
    say: Callable[[str], None],
    show: Callable[[Count], None],
) -> Count:
    """Adds a line to `out` for each of `paths` that has none there; an unreadable file gets none, and is tried again.

    top: classes a line, at most as many as there are. part: (i, n), 1 <= i <= n, takes those of `paths` that fall to
    this process of n; each needs its own `out`. say: shows the user a line. show: is called after each batch. Raises
    DataError, one line, for a file `out` that is not of this model and form, or in use.
    """
    seen, done = Paths(), Count(0, 0, 0, 0.0)
    top = min(top, len(classifier.class_names))
    table = Table(out, top=top, model=classifier.card["sha256"], seen=seen)
    index, count = part
    mine = ((path, path) for path in paths if number_of(path) % count == index - 1 and seen.add(path))
    try:
        with files.appending(out, keep=table.keep) as file:
            done, started = done._replace(there=table.count), time.monotonic()
            if table.count:
                say(f"{out} holds {table.count:,} predictions; going on")
            for found, bad in classifier.stream(mine, batch_size=batch_size):
                for name, reason in list(bad.items())[: max(0, _NAMED - done.bad)]:
                    say(f"left out, cannot be read: {shown(name)} ({reason})")
                file.write(table.lines(found))
                file.flush()
                done = Count(done.predicted + len(found), done.bad + len(bad), done.there, time.monotonic() - started)
                show(done)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise DataError(f"another command is writing {out}; wait for it, or choose another --out") from None
        raise
    return done
