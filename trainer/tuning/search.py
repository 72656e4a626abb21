"""Steps 2 to 5: runs the trials of a phase, an Optuna study, with successive halving.

Optuna samples the points and stores the results. Its trials cannot resume; ours can, because each has a workdir. All
decisions are in the storage, so a phase that runs again repeats nothing and continues. Of the workers that share a
storage, the first one to decide decides for all: the points, the lengths, who trains a trial, and whom to wait for.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from linseed.trainer import checksum
from linseed.trainer.errors import ConfigError, LinseedError
from linseed.trainer.tuning.ranking import Trial, rank, score
from linseed.trainer.tuning.space import RATE_AND_DECAY, Point, Space, say
from linseed.trainer.tuning.storage import Decisions, Named, create_study, damaged, same_numbers, same_values
from linseed.trainer.tuning.trials import Outcome, folder

optuna.logging.set_verbosity(optuna.logging.ERROR)

KEEP = 3  # one trial in so many goes on to the next rung
RUNNING_LATE = 900.0  # seconds to wait for another machine before going on without it
LATE = 4  # or this many times the slowest trial's time, if that is longer
_POLL = 2.0  # seconds between two checks on the other workers


class Phase:
    """One phase of a study: its trials in the Optuna study `study/name`.

    worker: the id of this worker, which trains its own trials and waits for the others'.
    identity: what the workers of one storage must have in common, a hash. space: the further keys of its points.
    run: (trial, steps) -> Outcome; it continues a trial that has begun.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        study: str,
        *,
        name: str,
        worker: str,
        identity: str,
        space: Space,
        run: Callable[[Trial, int], Outcome],
    ):
        self._study, self._storage = create_study(storage, f"{study}/{name}"), storage
        self._decisions = Decisions(storage, f"{study}/{name}/decisions")
        self.name = name
        self._worker, self._run, self._space = worker, run, RATE_AND_DECAY | space
        if self.plan("config_sha256", lambda: identity) != identity:
            raise ConfigError(
                f"the study '{study}' in this storage belongs to another config or another --search; use another "
                "--study or --storage"
            )

    def trials(self) -> list[Trial]:
        """All trials, by number. Of two that were added to the same place at the same time, the first one counts."""
        found = {}
        for trial in (self._read(trial) for trial in self._study.get_trials(deepcopy=False)):
            if "group" in trial.attributes:
                found.setdefault((trial.attributes["group"], trial.attributes["place"]), trial)
        return list(found.values())

    def plan(
        self, key: str, compute: Callable[[], Any], *, is_stale: Callable[[Any], bool] = lambda value: False
    ) -> Any:
        """The first value of `compute()` (JSON, not None) that a worker stored: that of all workers and later runs.

        A stored value that `is_stale` is computed again.
        """
        while True:
            value, number = self._planned(key)
            if value is not None and not is_stale(value):
                return value
            self._decisions.add(key, compute(), replaces=number)

    def grid(self, points: Sequence[Point], *, group: str, continues: Sequence[str] = ()):
        """Adds `points` to `group`, once. The next free worker runs them.

        continues: workdirs of earlier trials, which the first points continue.
        """
        workdirs = [{"workdir": name} for name in continues] + [{}] * (len(points) - len(continues))
        planned = self.plan(
            f"points of {group}", lambda: [point | workdir for point, workdir in zip(points, workdirs, strict=True)]
        )
        places = {trial.attributes["place"] for trial in self._members(group)}
        for place, about in enumerate(planned):
            if place not in places:
                point = {key: axis.stored(about[key]) for key, axis in self._space.items() if key in about}
                attributes = {"group": group, "place": place, **about}
                attributes = {key: value for key, value in attributes.items() if key not in point}
                attributes["sealed"] = checksum.seal({**attributes, "point": point})
                self._study.enqueue_trial(point, user_attrs=attributes)

    def draw(self, count: int, *, group: str, sampler: str, space: Space, seed: int) -> list[Point]:
        """Samples `count` new points of `space`, given the finished trials of the other groups."""
        known = [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        scratch = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed))
        scratch.add_trials([trial for trial in known if trial.user_attrs.get("group") != group])
        points = []
        for _ in range(count):
            trial = scratch.ask()
            points.append({key: axis.draw(trial, key) for key, axis in space.items()})
        return points

    def begin(self, group: str, steps: int, *, tell: Callable[[str], None]) -> list[Trial]:
        """`go_on` with all trials of `group`."""
        return self.go_on(self._members(group), steps, tell=tell)

    def go_on(self, trials: Sequence[Trial], steps: int, *, tell: Callable[[str], None]) -> list[Trial]:
        """Trains those of `trials` that are this worker's, or no worker's yet, to `steps`. Returns all, as at `steps`.

        A worker that is silent for long is not waited for: its trials are left out, by all workers.
        """
        known = {trial.number: trial for trial in self.trials()}
        for trial in trials:
            self._advance(known[trial.number], steps, tell=tell)
        return self._wait(sorted(trial.number for trial in trials), steps, tell=tell)

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
        """Closes the running trials: the phase is over."""
        for trial in self.trials():
            failed = trial.last.failed
            self._end(trial, TrialState.FAIL if failed else TrialState.COMPLETE, reason=failed)

    def _members(self, group):
        return [trial for trial in self.trials() if trial.attributes.get("group") == group]

    def _planned(self, key):
        """The value of the plan `key` and the number of its decision; (None, None) if there is none."""
        value, number = self._decisions.find(key)
        return (self._of_earlier_version(key) if number is None else value), number

    def _advance(self, trial, steps, *, tell):
        """Trains `trial` on to `steps`, unless it has been there, has failed, or is another worker's."""
        if _is_done(trial, steps) or self._owner(trial) != self._worker:
            return
        if not trial.rungs:
            self._start(trial)
        outcome = self._run(trial, steps)
        if not outcome.failed and steps not in trial.reported:
            self._set("intermediate_value", trial, steps, score(outcome))
        self._set("user_attr", trial, f"rung-{steps}", checksum.seal(outcome._asdict()))
        accuracy = f"{outcome.val_accuracy:.2%}{outcome.beside}"
        said = outcome.failed or f"train loss {outcome.train_loss:.4f}  val acc {accuracy}"
        tell(f"{trial.id}  {say(trial.point)}  step {steps:,}  {said}")

    def _owner(self, trial):
        """The worker that trains `trial`: the first that asked. Earlier versions kept it in an attribute."""
        return trial.attributes.get("worker") or self.plan(f"worker of trial {trial.number}", lambda: self._worker)

    def _start(self, trial):
        """Sets `trial` to RUNNING, with its point."""
        if trial.state == TrialState.WAITING:
            self._set("state_values", trial, TrialState.RUNNING)
        for key, value in trial.point.items():
            axis = self._space[key]
            self._set("param", trial, key, axis.distribution.to_internal_repr(axis.stored(value)), axis.distribution)

    def _wait(self, numbers, steps, *, tell):
        """Waits until each of the trials `numbers` has run to `steps` or failed. Returns those that did in time."""
        key = f"trials of {numbers} at {steps}"
        began, missing = time.monotonic(), None
        while (chosen := self._planned(key)[0]) is None:
            late = [trial.number for trial in self.trials() if trial.number in numbers and not _is_done(trial, steps)]
            if late and late != missing:
                began, missing = time.monotonic(), late
                tell(f"waiting for {len(late)} trials of other machines")
            if late and time.monotonic() - began <= self._patience():
                time.sleep(_POLL)
            elif late and late == numbers:
                raise LinseedError(
                    f"other machines took all trials of '{self.name}' and have sent no result for "
                    f"{self._patience() / 60:.0f} minutes; start them again, then run the same command again"
                )
            else:
                self._decisions.add(key, [number for number in numbers if number not in late], replaces=None)
        if len(chosen) < len(numbers):
            tell(f"going on without the trials {sorted(set(numbers) - set(chosen))} of other machines")
        found = [_as_of(trial, steps) for trial in self.trials() if trial.number in chosen]
        return [trial for trial in found if steps in trial.rungs or trial.last.failed]

    def _patience(self):
        """Seconds to wait for another worker."""
        return max(RUNNING_LATE, LATE * max((trial.last.seconds for trial in self.trials()), default=0.0))

    def _read(self, trial: FrozenTrial) -> Trial:
        try:
            return self._checked(trial)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise damaged(self._storage, f"trial {trial.number} of '{self.name}' is not what was written") from error

    def _checked(self, trial):
        """`trial`, if it is what was stored; raises a ValueError or the like if not: databases have no checksums."""
        rungs = {
            int(key.removeprefix("rung-")): Outcome(**checksum.unseal_or_old(value))
            for key, value in trial.user_attrs.items()
            if key.startswith("rung-")
        }
        # Optuna keeps the point of a waiting trial in `fixed_params`.
        waiting = {} if trial.state.is_finished() else trial.system_attrs.get("fixed_params", {})
        point = {**waiting, **trial.params}
        if stored := trial.user_attrs.get("sealed"):
            written = checksum.unseal(stored)
            if not same_values(written.pop("point"), point) or written != {
                key: trial.user_attrs.get(key) for key in written
            }:
                raise ValueError("another point, group, place or folder")
        accuracies = {steps: outcome.val_accuracy for steps, outcome in rungs.items()}
        reported = trial.intermediate_values
        if not same_numbers({steps: accuracies[steps] for steps in accuracies.keys() & reported.keys()}, reported):
            raise ValueError("another accuracy at a rung")
        final = dict.fromkeys(accuracies, trial.value) if trial.state == TrialState.COMPLETE else {}
        if final and not any(same_numbers({steps: accuracies[steps]}, final) for steps in final):
            raise ValueError("another accuracy at the end")
        own = f"{self.name}-{trial.number:02}"
        workdir = folder(Path(), trial.user_attrs.get("workdir", own)).name  # refuses a name that leads elsewhere
        point = {key: self._space[key].restored(value) for key, value in point.items()}
        return Trial(own, workdir, trial.number, point, rungs, frozenset(reported), trial.state, dict(trial.user_attrs))

    def _of_earlier_version(self, key):
        """The plan `key` of a version that kept it in an attribute, at first without a checksum, or None."""
        stored = self._study.user_attrs.get(key)
        if not (isinstance(stored, dict) and "crc32" in stored):
            return stored
        if (found := checksum.unseal(stored)) is None:
            raise damaged(self._storage, f"'{key}' is not what was written")
        return found["value"]

    def _set(self, what, trial, *values):
        """Sets a part of `trial` in the storage. An `optuna.Trial` would change objects that other threads read."""
        storage = Named(self._storage, self._storage)
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study.of._study_id, trial.number)
        getattr(storage, f"set_trial_{what}")(trial_id, *values)

    def _end(self, trial, state, *, reason):
        """Ends a running trial. All workers decide the same, and the first one writes it."""
        if trial.state != TrialState.RUNNING:
            return
        values = score(trial.last) if state == TrialState.COMPLETE else None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set("user_attr", trial, "reason", reason)
            self._study.tell(trial.number, values, state=state, skip_if_finished=True)


SAMPLERS = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=False),
}


def _is_done(trial, steps):
    return steps in trial.rungs or trial.last.failed or trial.state.is_finished()


def _as_of(trial, steps):
    """`trial` as it was at `steps`, so that a repeated phase makes the same decisions."""
    return trial._replace(rungs={rung: outcome for rung, outcome in trial.rungs.items() if rung <= steps})
