"""The storage of a study: a SQLite file in its workdir, or a database that several machines share."""

import contextlib
import functools
import logging
import math
import re
import sqlite3
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from linseed.trainer import checksum, files
from linseed.trainer.errors import ConfigError, LinseedError, WorkdirError

_SQLITE = "sqlite:///"


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[optuna.storages.BaseStorage]:
    """Opens the storage at an SQLAlchemy URL. Raises a LinseedError if it is damaged or does not answer."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _naming(url):
        if url.startswith(_SQLITE):
            _check_file(Path(url.removeprefix(_SQLITE)))
        storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class Named:
    """An Optuna object in a storage, whose attributes and methods raise a LinseedError if the storage fails."""

    def __init__(self, of: Any, storage: optuna.storages.BaseStorage):
        self.of, self._url = of, getattr(storage, "url", "")

    def __getattr__(self, name: str) -> Any:
        with _naming(self._url):
            found = getattr(self.of, name)
        return functools.partial(self._call, found) if callable(found) else found

    def _call(self, method, *args, **kwargs):
        with _naming(self._url):
            return method(*args, **kwargs)


def create_study(storage: optuna.storages.BaseStorage, name: str) -> Named:
    """The Optuna study `name` in `storage`, made where it is missing."""
    make = Named(optuna, storage).create_study
    return Named(make(storage=storage, study_name=name, direction="maximize", load_if_exists=True), storage)


class Decisions:
    """Values that all workers of a storage agree on: of two that are added at the same time, the first one counts.

    Each is a trial of the Optuna study `name`, because every storage of Optuna numbers new trials atomically. An
    attribute keeps the last of two values, and in SQLite two workers can both set the same trial to RUNNING.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str):
        self._study, self._storage, self._name = create_study(storage, name), storage, name
        self._known = []  # the decisions read so far, by number

    def find(self, key: str) -> tuple[Any, int | None]:
        """The value of `key` and the number of its decision; (None, None) if there is none."""
        for trial in self._study.get_trials(deepcopy=False)[len(self._known) :]:
            if (decision := checksum.unseal(trial.user_attrs.get("decision"))) is None:
                raise damaged(self._storage, f"trial {trial.number} of '{self._name}' is not what was written")
            self._known.append(decision)
        value = number = None
        for at, decision in enumerate(self._known):
            if (decision["key"], decision["replaces"]) == (key, number):
                value, number = decision["value"], at
        return value, number

    def add(self, key: str, value: Any, *, replaces: int | None):
        """Decides `value` (JSON) in place of the decision `replaces`, unless another worker has replaced that one."""
        decision = checksum.seal({"key": key, "value": value, "replaces": replaces})
        self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"decision": decision}))


def remembered_worker(storage: optuna.storages.BaseStorage, worker: str) -> str:
    """The worker that first used `storage`, from now on `worker`: it keeps its trials when `study.json` is lost."""
    study = create_study(storage, "worker")
    if "worker" not in study.user_attrs:
        study.set_user_attr("worker", worker)
    return study.user_attrs["worker"]


def same_numbers(written: Mapping[Any, float], found: Mapping[Any, float]) -> bool:
    """Whether `found` has every number of `written`; some databases round the last bits."""
    return all(math.isclose(number, found[key], rel_tol=1e-9) for key, number in written.items())


def same_values(written: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether `found` has the keys and the values of `written`, its numbers as for `same_numbers`."""
    numbers = {key: value for key, value in written.items() if isinstance(value, float)}
    others = written.keys() - numbers
    return (
        written.keys() == found.keys()
        and same_numbers(numbers, found)
        and all(written[key] == found[key] for key in others)
    )


def damaged(storage: optuna.storages.BaseStorage, what: str) -> LinseedError:
    """The error for a storage that answers, but not with what was written."""
    return _unusable(getattr(storage, "url", ""), what)


@contextlib.contextmanager
def _naming(url):
    try:
        yield
    except (LinseedError, optuna.exceptions.UpdateFinishedTrialError):
        raise
    except Exception as error:  # each database driver has its own exceptions
        raise _unusable(url, f"{type(error).__name__}: {error}") from error


def _unusable(url, why):
    if url.startswith(_SQLITE):
        path = url.removeprefix(_SQLITE)
        cure = "put back a copy of it, or choose another --workdir or --storage"
        return WorkdirError(f"{path} is damaged or cannot be used ({why.splitlines()[0]}); {cure}")
    scheme, _, rest = url.partition("://")
    parts = {*re.split("[^a-zA-Z0-9]", rest), *re.split("[:/@?&;=]", rest)}  # a password can be any of them
    for part in sorted(parts | {urllib.parse.unquote_plus(part) for part in parts}, key=len, reverse=True):
        why = why.replace(part, "...") if len(part) > 2 else why
    cure = "check --storage, and run the same command again"
    return ConfigError(f"the storage {scheme}://... does not answer ({why.splitlines()[0]}); {cure}")


def _check_file(path):
    """Raises for a file that SQLite could follow a link from, or that it finds damaged: it has no checksums."""
    files.refuse_links(*(path.with_name(path.name + suffix) for suffix in ("", "-journal", "-wal", "-shm")))
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=rw", uri=True)) as database:
        (found,) = database.execute("PRAGMA integrity_check").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
