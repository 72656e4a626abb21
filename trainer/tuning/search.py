"""Steps 2 to 5: runs the trials of a phase, an Optuna study, with successive halving.

Optuna samples the points and stores the results. Its trials cannot resume; ours can, because each has a workdir. All
decisions are in the storage, so a phase that runs again repeats nothing and continues. Of the workers that share a
storage, one is the planner: it chooses the points and lengths, and the others read them.
"""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from linseed.trainer.errors import ConfigError, LinseedError
from linseed.trainer.tuning.trials import Outcome

optuna.logging.set_verbosity(optuna.logging.ERROR)

KEEP = 3  # one trial in so many goes on to the next rung
RUNNING_LATE = 900.0  # seconds to wait for another machine before going on without it
LATE = 4  # or this many times the slowest trial's time, if that is longer
_SIGNING = 3.0  # seconds within which a live worker signs the trial that it took
_SETTLE = 0.2  # seconds until all workers see the same planner
_POLL = 2.0  # seconds between two checks on the other workers

Point = dict[str, float]  # "lr" and "weight_decay"


class Trial(NamedTuple):
    """A trial in the storage: its point, and the outcome of each rung that it ran (steps -> outcome)."""

    id: str
    workdir: str  # its own name, or the name of the trial that it continues
    number: int
    point: Point
    rungs: dict[int, Outcome]
    reported: frozenset[int]  # steps whose accuracy was reported to Optuna
    state: TrialState
    attributes: dict[str, Any]

    @property
    def last(self) -> Outcome:
        return self.rungs[max(self.rungs)] if self.rungs else Outcome(0)


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[optuna.storages.BaseStorage]:
    """Opens the storage at an SQLAlchemy URL. Raises ConfigError, one line, if it does not answer."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # each database driver has its own exceptions
        first = str(error).splitlines()[0]
        raise ConfigError(f"the storage {_without_password(url)} does not answer ({first}); check --storage") from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _without_password(url):
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://...@{tail}" if at else url


class Phase:
    """One phase of a study: its trials in the Optuna study `study/name`.

    worker: the id of this worker, which trains its own trials and waits for the others'.
    run: (trial, steps) -> Outcome; it continues a trial that has begun.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        study: str,
        *,
        name: str,
        worker: str,
        config_sha256: str,
        run: Callable[["Trial", int], Outcome],
    ):
        self._study = optuna.create_study(
            storage=storage, study_name=f"{study}/{name}", direction="maximize", load_if_exists=True
        )
        self.name = name
        self._worker, self._run = worker, run
        owner = self._study.user_attrs.get("config_sha256")
        if owner is None:
            self._study.set_user_attr("config_sha256", config_sha256)
        elif owner != config_sha256:
            raise ConfigError(
                f"the study '{study}' in this storage belongs to another config; choose another --study or --storage"
            )

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return [self._read(trial) for trial in self._study.get_trials(deepcopy=False)]

    def plan(
        self, key: str, compute: Callable[[], Any], *, is_stale: Callable[[Any], bool] = lambda value: False
    ) -> Any:
        """The planner's value of `compute()` (JSON), which is computed once and stored for all workers and later runs.

        A stored value that `is_stale` is computed again. If the planner is silent for long, this worker takes over.
        """
        began = time.monotonic()
        while True:
            attributes = self._study.user_attrs
            if key in attributes and not is_stale(attributes[key]):
                return attributes[key]
            if self._plans(attributes):
                self._study.set_user_attr(key, compute())
                continue
            if time.monotonic() - began > self._patience():
                self._study.set_user_attr("planner", self._worker)
            time.sleep(_POLL)

    def _plans(self, attributes):
        """Whether this worker is the planner: the first one that asked."""
        if "planner" not in attributes:
            self._study.set_user_attr("planner", self._worker)
            time.sleep(_SETTLE)
        return self._study.user_attrs["planner"] == self._worker

    def grid(self, points: Sequence[Point], *, group: str, continues: Sequence[str] = ()):
        """Adds `points` to `group`, once. The next free worker runs them.

        continues: workdirs of earlier trials, which the first points continue.
        """
        points = self.plan(f"points of {group}", lambda: list(points))
        while len(places := {trial.attributes["place"] for trial in self._members(group)}) < len(points):
            if not self._plans(self._study.user_attrs):
                time.sleep(_POLL)
                continue
            for place, point in enumerate(points):
                if place not in places:
                    more = {"workdir": continues[place]} if place < len(continues) else {}
                    stored = {key: max(value, _NO_DECAY) for key, value in point.items()}
                    self._study.enqueue_trial(stored, user_attrs={"group": group, "place": place, **more})

    def draw(
        self, count: int, *, group: str, sampler: str, bounds: Mapping[str, tuple[float, float]], seed: int
    ) -> list[Point]:
        """Samples `count` new points within `bounds`, on log axes, given the finished trials of the other groups."""
        known = [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        scratch = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed))
        scratch.add_trials([trial for trial in known if trial.user_attrs.get("group") != group])
        points = []
        for _ in range(count):
            trial = scratch.ask()
            drawn = {key: trial.suggest_float(key, low, high, log=True) for key, (low, high) in bounds.items()}
            points.append({key: float(f"{value:.3g}") for key, value in drawn.items()})
        return points

    def begin(self, group: str, steps: int, *, tell: Callable[[str], None]) -> list[Trial]:
        """Trains the trials of `group` to `steps`: this worker's, then unclaimed ones. Returns all, as at `steps`."""
        self._adopt(group)
        for trial in self._members(group):
            self._advance(trial, steps, tell=tell)
        while (trial := self._take(group)) is not None:
            self._advance(trial, steps, tell=tell)
        return self._wait([trial.number for trial in self._members(group)], steps, tell=tell)

    def go_on(self, trials: Sequence[Trial], steps: int, *, tell: Callable[[str], None]) -> list[Trial]:
        """Trains `trials` on to `steps`. Returns them, as at `steps`."""
        for trial in trials:
            self._advance(trial, steps, tell=tell)
        return self._wait([trial.number for trial in trials], steps, tell=tell)

    def halve(self, group: str, rungs: Sequence[int], *, keep: int, tell: Callable[[str], None]) -> list[Trial]:
        """Trains all of `group` to the first of `rungs` (steps), the best third on validation to the next, ...

        At least `keep` trials survive each rung, unless they failed. Returns the survivors, the best first. Li et al.
        2018, one bracket of Hyperband.
        """
        alive = self.begin(group, rungs[0], tell=tell)
        for place, steps in enumerate(rungs):
            if place:
                alive = self.go_on(alive, steps, tell=tell)
            ranked = sorted(alive, key=lambda trial: rank(trial, score), reverse=True)
            survivors, last = max(keep, len(alive) // KEEP), place + 1 == len(rungs)
            for position, trial in enumerate(ranked):
                if trial.last.failed:
                    self._end(trial, TrialState.FAIL, reason=trial.last.failed)
                elif position >= survivors:
                    reason = f"not among the best {survivors} of {len(alive)} after {steps:,} steps"
                    self._end(trial, TrialState.COMPLETE if last else TrialState.PRUNED, reason=reason)
            alive = [trial for trial in ranked[:survivors] if not trial.last.failed]
        for trial in alive:
            self._end(trial, TrialState.COMPLETE, reason="")
        known = {trial.number: trial for trial in self.trials()}
        return [known[trial.number] for trial in alive]

    def finish(self):
        """Closes this worker's running trials: the phase is over."""
        for trial in self.trials():
            failed = trial.last.failed
            self._end(trial, TrialState.FAIL if failed else TrialState.COMPLETE, reason=failed)

    def _members(self, group):
        return [trial for trial in self.trials() if trial.attributes.get("group") == group]

    def _take(self, group):
        """Takes the first waiting trial of `group` for this worker; None if none waits."""
        while any(trial.state == TrialState.WAITING for trial in self._members(group)):
            asked = self._study.ask(_WIDEST)
            if "group" not in asked.user_attrs:  # another worker was faster, and Optuna made a new trial
                self._study.tell(asked.number, state=TrialState.FAIL)
                continue
            asked.set_user_attr("worker", self._worker)
            return next(trial for trial in self.trials() if trial.number == asked.number)
        return None

    def _adopt(self, group):
        """Signs the orphans of `group` as this worker's."""
        for trial in self._orphans(group):
            live = self._live(trial)
            for key, widest in _WIDEST.items():
                live.suggest_float(key, widest.low, widest.high, log=True)
            live.set_user_attr("worker", self._worker)

    def _orphans(self, group):
        """Trials of `group` taken by a worker that was killed before it could sign."""
        while True:
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            unsigned = [trial for trial in running if "worker" not in trial.user_attrs]
            unsigned = [trial for trial in unsigned if trial.user_attrs.get("group") == group]
            now = datetime.datetime.now()
            if all((now - trial.datetime_start).total_seconds() > _SIGNING for trial in unsigned):
                return [self._read(trial) for trial in unsigned]
            time.sleep(0.1)  # another worker may be about to sign

    def _advance(self, trial, steps, *, tell):
        """Trains `trial` on to `steps`, unless it has been there, has failed, or is another worker's."""
        trial = next(known for known in self.trials() if known.number == trial.number)
        done = steps in trial.rungs or trial.last.failed or trial.state.is_finished()
        if done or trial.attributes.get("worker") != self._worker:
            return
        outcome = self._run(trial, steps)
        live = self._live(trial)
        if not outcome.failed and steps not in trial.reported:
            live.report(score(outcome), steps)
        live.set_user_attr(f"rung-{steps}", outcome._asdict())
        accuracy = f"{outcome.val_accuracy:.2%}{outcome.beside}"
        said = outcome.failed or f"train loss {outcome.train_loss:.4f}  val acc {accuracy}"
        point = "  ".join(f"{key} {value:.3g}" for key, value in trial.point.items())
        tell(f"{trial.id}  {point}  step {steps:,}  {said}")

    def _wait(self, numbers, steps, *, tell):
        """Waits until each of the trials `numbers` has run to `steps` or failed; returns them."""
        began, missing = time.monotonic(), None
        while True:
            found = [trial for trial in self.trials() if trial.number in numbers]
            late = [
                trial.number
                for trial in found
                if steps not in trial.rungs and not trial.last.failed and not trial.state.is_finished()
            ]
            if not late:
                return [_as_of(trial, steps) for trial in found if steps in trial.rungs or trial.last.failed]
            if late != missing:
                began, missing = time.monotonic(), late
                tell(f"waiting for {len(late)} trials of other machines")
            if time.monotonic() - began > self._patience():
                tell(f"going on without the trials {late} of other machines")
                return [_as_of(trial, steps) for trial in found if trial.number not in late]
            time.sleep(_POLL)

    def _patience(self):
        """Seconds to wait for another worker."""
        return max(RUNNING_LATE, LATE * max((trial.last.seconds for trial in self.trials()), default=0.0))

    def _read(self, trial: FrozenTrial) -> Trial:
        rungs = {
            int(key.removeprefix("rung-")): Outcome(**value)
            for key, value in trial.user_attrs.items()
            if key.startswith("rung-")
        }
        # Optuna keeps the point of a waiting trial in `fixed_params`.
        point = trial.params or trial.system_attrs.get("fixed_params", {})
        point = {key: value if value > _NO_DECAY else 0.0 for key, value in point.items()}
        own = f"{self.name}-{trial.number:02}"
        workdir = trial.user_attrs.get("workdir", own)
        reported = frozenset(trial.intermediate_values)
        return Trial(own, workdir, trial.number, point, rungs, reported, trial.state, dict(trial.user_attrs))

    def _live(self, trial):
        ids = {frozen.number: frozen._trial_id for frozen in self._study.get_trials(deepcopy=False)}
        return optuna.trial.Trial(self._study, ids[trial.number])

    def _end(self, trial, state, *, reason):
        if trial.state != TrialState.RUNNING or trial.attributes.get("worker") != self._worker:
            return
        self._live(trial).set_user_attr("reason", reason)
        values = score(trial.last) if state == TrialState.COMPLETE else None
        self._study.tell(trial.number, values, state=state, skip_if_finished=True)


_NO_DECAY = 1e-12  # stored for 0: all axes are logarithmic
_WIDEST = {key: FloatDistribution(_NO_DECAY, 1e6, log=True) for key in ("lr", "weight_decay")}

SAMPLERS = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=False),
}


def _as_of(trial, steps):
    """`trial` as it was at `steps`, so that a repeated phase makes the same decisions."""
    return trial._replace(rungs={rung: outcome for rung, outcome in trial.rungs.items() if rung <= steps})


def score(outcome: Outcome) -> float:
    """What config.eval.monitor names, the higher the better; studies of earlier versions know the accuracy alone."""
    return outcome.val_accuracy if math.isnan(outcome.score) else outcome.score


def rank(trial: Trial, by: Callable[[Outcome], float]) -> float:
    """`by` of the trial's last outcome; -inf if the trial failed or the value is NaN."""
    value = -math.inf if trial.last.failed or not trial.rungs else by(trial.last)
    return -math.inf if math.isnan(value) else value


def best_within_a_standard_error(trials: Sequence[Trial]) -> Trial:
    """The trial with the most decay, of those within one standard error of the best score.

    The 1-SE rule of Breiman et al. 1984: of equals, the simplest. Raises LinseedError if all failed.
    """
    sound = [trial for trial in trials if rank(trial, score) > -math.inf]
    if not sound:
        raise LinseedError("every trial of this step failed; fix the problems of the earlier steps in study.html")
    best = max(sound, key=lambda trial: rank(trial, score)).last
    error = best.score_error
    if math.isnan(error):  # of an earlier version, which scored by accuracy
        error = math.sqrt(best.val_accuracy * (1 - best.val_accuracy) / best.val_examples)
    equals = [trial for trial in sound if score(trial.last) >= score(best) - error]
    return max(equals, key=lambda trial: (trial.point["weight_decay"], rank(trial, score)))
