"""A phase of a study: halving, killed anywhere, shared by workers. Nothing is trained here: `run` is a formula."""

import concurrent.futures
import contextlib
import copy
import itertools
import math
import sqlite3

import optuna
import pytest
from optuna.storages import journal

from linseed.trainer.errors import ConfigError, LinseedError, WorkdirError
from linseed.trainer.tuning import search
from linseed.trainer.tuning import storage as storage_lib
from linseed.trainer.tuning.ranking import best_within_a_standard_error
from linseed.trainer.tuning.search import Phase
from linseed.trainer.tuning.space import Choice, Range
from linseed.trainer.tuning.trials import Outcome

POINTS = [{"lr": 10.0**-exponent, "weight_decay": decay} for exponent in (1, 2, 3) for decay in (0.0, 1e-4, 1e-2)]
FURTHER = {"model.dropout": Range(0.0, 0.5), "data.augment": Choice(("", "flip_lr(0.5)", "pad_crop(1)"))}
BOUNDS = {"lr": Range(1e-3, 1e-1, log=True), "weight_decay": Range(1e-5, 1e-3, log=True)}


class Killed(BaseException):
    """A kill -9, as far as the phase can tell."""


class Bench:
    """Phases over one storage whose trials are a formula, and a log of what ran."""

    def __init__(self, storage=None, *, space=None):
        self.storage, self.space = storage or optuna.storages.InMemoryStorage(), space or {}
        self.ran = []
        self.kill_at = math.inf  # the run that dies, counted over all
        self.calls = 0

    def run(self, trial, steps):
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        self.ran.append((trial.number, steps))
        if trial.point["lr"] > 0.05 and steps > 20:
            return Outcome(steps=12, failed="the loss of step 12 is not finite")
        # the longer, the better; the order changes between the rungs
        distance = abs(math.log10(trial.point["lr"]) + 2.2) + (trial.point["weight_decay"] if steps > 20 else 0.0)
        return Outcome(
            steps=steps, train_loss=distance, val_accuracy=0.9 - 0.1 * distance - 1 / steps, val_examples=100
        )

    def phase(self, worker="a", *, config="sha"):
        return Phase(
            self.storage, "study", name="search", worker=worker, identity=config, space=self.space, run=self.run
        )

    def study(self, worker="a", *, points=POINTS, count=3):
        """A grid cut down, then points sampled around its winner: what a run of the procedure does in steps 4 and 5."""
        phase = self.phase(worker)
        phase.grid(points, group="coarse")
        survivors = phase.halve("coarse", [10, 30], keep=2, tell=_silent)
        drawn = phase.draw(count, group="refine", sampler="tpe", space=BOUNDS | self.space, seed=0)
        carried = [t.point for t in survivors]
        phase.grid([*carried, *drawn], group="refine", continues=[t.workdir for t in survivors])
        return phase.halve("refine", [30, 90], keep=2, tell=_silent)


class Interrupted(optuna.storages.InMemoryStorage):
    """A storage that calls `meanwhile` before its write number `at`: its user was slow, and another one was not."""

    def __init__(self, *, at, meanwhile):
        super().__init__()
        self.writes, self._at, self._meanwhile = 0, at, meanwhile

    def __getattribute__(self, name):
        if name.startswith(("create_", "set_")):
            self.writes += 1
            if self.writes == self._at:
                self._meanwhile()
        return super().__getattribute__(name)


def _silent(line):
    """Says nothing."""


def shown(trials):
    return [str((t.id, t.workdir, t.point, t.rungs, t.state, t.attributes.get("reason"))) for t in trials]


@pytest.fixture(autouse=True, scope="module")
def at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_POLL", 0.01)
        yield


@pytest.fixture(scope="module")
def straight():
    bench = Bench()
    winners = bench.study()
    return bench, winners


def test_halving_keeps_the_best_third_and_says_why_the_others_ended(straight):
    bench, _ = straight
    coarse = [t for t in bench.phase().trials() if t.attributes["group"] == "coarse"]
    at_first = sorted(coarse, key=lambda t: t.rungs[10].val_accuracy, reverse=True)
    assert all(30 in t.rungs for t in at_first[:3]) and not any(30 in t.rungs for t in at_first[3:])
    for trial in at_first[3:]:
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert trial.attributes["reason"] == "not among the best 3 of 9 after 10 steps"


def test_a_failed_trial_never_goes_on():
    bench = Bench()
    phase = bench.phase()
    phase.grid([{"lr": 0.1, "weight_decay": 0.0}] * 3, group="all fail")
    assert phase.halve("all fail", [30, 60], keep=2, tell=_silent) == []
    assert {t.state for t in phase.trials()} == {optuna.trial.TrialState.FAIL}
    assert bench.ran == [(0, 30), (1, 30), (2, 30)]
    with pytest.raises(LinseedError, match="every trial of this step failed"):
        best_within_a_standard_error(phase.trials())


def test_carried_trials_go_on_in_their_own_workdir(straight):
    bench, _ = straight
    carried = [t for t in bench.phase().trials() if t.attributes["group"] == "refine" and t.attributes["place"] < 2]
    assert [t.workdir for t in carried] != [t.id for t in carried]
    assert {t.workdir for t in carried} <= {t.id for t in bench.phase().trials() if t.attributes["group"] == "coarse"}


def test_a_file_holds_what_memory_holds(straight, tmp_path):
    with storage_lib.open_storage(f"sqlite:///{tmp_path / 'trials.db'}") as storage:
        assert shown(Bench(storage).study()) == shown(straight[1])


def test_sampled_points_lie_within_the_bounds_and_differ(straight):
    refine = [t for t in straight[0].phase().trials() if t.attributes["group"] == "refine"]
    sampled = [t for t in refine if t.attributes["place"] >= 2]
    assert len(sampled) == len({t.point["lr"] for t in sampled}) == 3
    for key, (low, high, *_) in BOUNDS.items():
        assert all(low <= t.point[key] <= high for t in sampled)


def test_further_keys_are_drawn_and_the_grid_leaves_them_to_the_config(tmp_path):
    bench = Bench(space=FURTHER)
    winners = bench.study(count=6)
    for trial in bench.phase().trials():
        if trial.attributes["group"] == "coarse" or trial.attributes["place"] < 2:
            assert trial.point.keys() == {"lr", "weight_decay"}
            continue
        assert trial.point.keys() == {*BOUNDS, *FURTHER} and 0 <= trial.point["model.dropout"] <= 0.5
        assert trial.point["data.augment"] in FURTHER["data.augment"].values
    assert len({trial.point.get("data.augment") for trial in bench.phase().trials()}) > 2  # the grid has none
    with storage_lib.open_storage(f"sqlite:///{tmp_path / 'trials.db'}") as storage:
        filed = Bench(storage, space=FURTHER)
        filed.kill_at = 14  # within the second rung of the drawn points
        with pytest.raises(Killed):
            filed.study(count=6)
    with storage_lib.open_storage(f"sqlite:///{tmp_path / 'trials.db'}") as storage:
        filed.storage, filed.kill_at = storage, math.inf
        assert shown(filed.study(count=6)) == shown(winners)
        assert shown(filed.phase().trials()) == shown(bench.phase().trials()) and filed.ran == bench.ran


def test_killed_at_any_run_the_study_ends_as_if_nothing_happened_and_runs_nothing_twice(straight):
    bench, winners = straight
    again = Bench()
    for call in range(1, bench.calls + 1):  # each run is killed once, then done
        again.kill_at, again.calls = 2, 0
        if call == 1:
            again.kill_at = 1
        try:
            again.study()
        except Killed:
            continue
        break
    again.kill_at = math.inf
    assert shown(again.study()) == shown(winners)
    assert shown(again.phase().trials()) == shown(bench.phase().trials())
    assert again.ran == bench.ran and len(set(again.ran)) == len(again.ran)


@pytest.mark.parametrize(
    ("owner", "moment"),
    [
        (optuna.storages.InMemoryStorage, "set_trial_state_values"),
        (optuna.storages.InMemoryStorage, "set_trial_intermediate_value"),
        (optuna.storages.InMemoryStorage, "set_trial_user_attr"),
        (optuna.study.Study, "enqueue_trial"),
        (optuna.study.Study, "tell"),
        (storage_lib.Decisions, "add"),
    ],
)
def test_killed_within_the_storage_nothing_is_lost(straight, monkeypatch, owner, moment):
    bench, winners = straight
    again = Bench()
    original, calls = getattr(owner, moment), []

    def dies_now_and_then(self, *args, **kwargs):
        calls.append(moment)
        if len(calls) % 5 == 2:
            raise Killed
        value = original(self, *args, **kwargs)
        if len(calls) % 7 == 0:
            raise Killed
        return value

    monkeypatch.setattr(owner, moment, dies_now_and_then)
    for _ in range(400):
        try:
            found = again.study()
            break
        except Killed:
            pass
    assert shown(found) == shown(winners)
    assert {(t.id, tuple(t.point.items())) for t in again.phase().trials()} == {
        (t.id, tuple(t.point.items())) for t in bench.phase().trials()
    }


def test_two_workers_share_the_trials_and_agree(straight, monkeypatch):
    monkeypatch.setattr(search, "RUNNING_LATE", 60.0)  # so that they end, and the test fails, if they wait in vain
    bench = Bench()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        a, b = pool.map(bench.study, ("a", "b"))
    assert shown(a) == shown(b)
    assert len(set(bench.ran)) == len(bench.ran) == len(straight[0].ran)
    assert [t.point for t in bench.phase().trials()] == [t.point for t in straight[0].phase().trials()]


def test_two_workers_agree_wherever_one_is_interrupted_by_all_that_the_other_does(monkeypatch):
    def sleep(seconds):
        assert next(sleeps) < 5000, "it waits for ever"

    sleeps = itertools.count()
    monkeypatch.setattr(search.time, "sleep", sleep)
    monkeypatch.setattr(search, "RUNNING_LATE", 0.0)
    found, bench = {}, Bench()

    def other():
        found["b"] = None
        with contextlib.suppress(LinseedError):  # where the first one has taken all trials
            found["b"] = shown(bench.study("b", points=POINTS[3:5], count=1))

    for at in itertools.count(1):
        found.clear()
        bench.storage, bench.ran = Interrupted(at=at, meanwhile=other), []
        first = shown(bench.study("a", points=POINTS[3:5], count=1))
        assert found.get("b") in (None, first), at
        assert len(set(bench.ran)) == len(bench.ran), at
        places = [(t.attributes["group"], t.attributes["place"]) for t in bench.phase().trials()]
        assert places == sorted(set(places)) and places[:2] == [("coarse", 0), ("coarse", 1)], at
        if not found:  # `at` is beyond the last write
            break
    assert at > 50


def test_two_configs_cannot_begin_one_study_at_the_same_time():
    bench = Bench()
    for at in range(1, 4):
        begun = []

        def begin(config):
            with contextlib.suppress(ConfigError):
                bench.phase(config=config)
                begun.append(config)  # noqa: B023

        bench.storage = Interrupted(at=at, meanwhile=lambda: begin("other"))  # noqa: B023
        begin("sha")
        assert len(begun) == 1


@contextlib.contextmanager
def opened(kind, folder):
    """A storage of that kind: each time another one over the same data, as on another machine."""
    if kind == "sqlite":
        with storage_lib.open_storage(f"sqlite:///{folder / 'trials.db'}") as storage:
            yield storage
    else:
        yield optuna.storages.JournalStorage(journal.JournalFileBackend(str(folder / "journal")))


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_of_two_decisions_at_the_same_time_the_first_counts_for_all(tmp_path, kind):
    with opened(kind, tmp_path) as storage, opened(kind, tmp_path) as other:
        a, b = (storage_lib.Decisions(of, "decisions") for of in (storage, other))
        assert a.find("steps") == b.find("steps") == (None, None)
        b.add("steps", 20, replaces=None)
        a.add("steps", 10, replaces=None)
        a.add("points", [], replaces=None)
        assert a.find("steps") == b.find("steps") == (20, 0)
        a.add("steps", 30, replaces=0)
        b.add("steps", 40, replaces=0)
        assert a.find("steps") == b.find("steps") == (30, 3)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_workers_of_a_shared_storage_share_the_trials(tmp_path, kind):
    points = POINTS[2:6]  # the first is the worst
    with opened(kind, tmp_path) as storage, opened(kind, tmp_path) as other:
        a, b = Bench(storage), Bench(other)
        a.phase("a").grid(points, group="coarse")
        a.phase("a").go_on(a.phase("a").trials()[:1], 10, tell=_silent)
        assert shown(b.study("b", points=points, count=1)) == shown(a.study("a", points=points, count=1))
        assert a.ran == [(0, 10)] and len(set(b.ran)) == len(b.ran) and (0, 10) not in b.ran


def test_a_worker_changes_no_object_that_another_thread_reads(monkeypatch):
    """The storage in memory hands out its own objects."""
    bench, read = Bench(), []

    def run(trial, steps):
        read.extend(phase._study.get_trials(deepcopy=False))
        read.append(copy.deepcopy(read[0]))
        return Outcome(steps=steps, val_accuracy=0.9, val_examples=100)

    monkeypatch.setattr(bench, "run", run)
    phase = bench.phase()
    phase.grid(POINTS[3:4], group="coarse")
    phase.halve("coarse", [10], keep=1, tell=_silent)
    assert read[0] == read[1]


def test_points_are_drawn_given_trials_that_their_worker_has_not_ended(straight, monkeypatch):
    monkeypatch.setattr(search, "RUNNING_LATE", 0.0)
    bench = Bench()
    slow = bench.phase("slow")
    slow.grid(POINTS, group="coarse")
    ranked = sorted(slow.begin("coarse", 10, tell=_silent), key=lambda t: t.last.val_accuracy, reverse=True)
    slow.go_on(ranked[:3], 30, tell=_silent)
    assert shown(bench.study("fast")) == shown(straight[1])
    assert shown(bench.phase().trials()) == shown(straight[0].phase().trials())


def test_what_one_worker_planned_the_others_read():
    bench = Bench()
    assert bench.phase("a").plan("steps", lambda: 10) == bench.phase("b").plan("steps", lambda: 20) == 10
    assert bench.phase("a").plan("steps", lambda: 30, is_stale=lambda value: value == 10) == 30


def test_a_worker_that_went_away_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(search, "RUNNING_LATE", 0.05)
    bench = Bench()
    bench.kill_at = 1
    gone = bench.phase("gone")
    gone.grid(POINTS, group="coarse")
    with pytest.raises(Killed):
        gone.halve("coarse", [10, 30], keep=2, tell=_silent)
    said = []
    survivors = bench.phase("here").halve("coarse", [10, 30], keep=2, tell=said.append)
    assert len(survivors) == 2 and any("without the trials [0]" in line for line in said)
    assert shown(gone.halve("coarse", [10, 30], keep=2, tell=said.append)) == shown(survivors)  # it comes back


def test_where_every_trial_is_with_a_worker_that_went_away_the_study_says_so_and_decides_nothing(monkeypatch):
    monkeypatch.setattr(search, "RUNNING_LATE", 0.0)
    bench = Bench()
    bench.kill_at = 1
    bench.phase().grid(POINTS[3:4], group="coarse")
    with pytest.raises(Killed):
        bench.phase("gone").begin("coarse", 10, tell=_silent)
    with pytest.raises(LinseedError, match="took all trials of 'search' .*start them again"):
        bench.phase("here").begin("coarse", 10, tell=_silent)
    assert [t.number for t in bench.phase("gone").begin("coarse", 10, tell=_silent)] == [0]


def test_a_study_of_another_config_is_refused():
    bench = Bench()
    bench.phase()
    with pytest.raises(ConfigError, match="belongs to another config"):
        bench.phase(config="other")


@pytest.mark.parametrize(
    "url",
    [
        "nosuchdb://user:secret@localhost/none",
        "nosuchdb://localhost/none?user=me&password=secret",
        "nosuchdb://localhost/none?password=a@secret",
        "nosuchdb://user:p@ss/secret@localhost/none",
        "nosuchdb://user:%73ecret@localhost/secret?a=b",
        "secret",
        "sqlite+nodriver://user:secret@/x",
    ],
)
def test_a_storage_that_does_not_answer_is_one_line_without_its_password(url):
    with pytest.raises(ConfigError, match="does not answer .*check --storage") as raised:
        with storage_lib.open_storage(url):
            pass
    assert "secret" not in str(raised.value).replace("secret://", "") and "\n" not in str(raised.value)


def stored(tmp_path, *, points=POINTS[3:6]):
    """The storage of a phase with finished trials, and of a group that waits."""
    with storage_lib.open_storage(f"sqlite:///{tmp_path / 'trials.db'}") as storage:
        phase = Bench(storage, space=FURTHER).phase()
        phase.grid(points, group="coarse")
        phase.halve("coarse", [10], keep=2, tell=_silent)
        phase.grid(points[:1], group="waits")
    return tmp_path / "trials.db"


def is_refused(path, sql):
    """Whether a phase says in one line that the storage is damaged after `sql`."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute(sql).rowcount
        database.commit()
    with pytest.raises(WorkdirError, match="trials.db is damaged or cannot be used .*put back a copy of it") as raised:
        with storage_lib.open_storage(f"sqlite:///{path}") as storage:
            phase = Bench(storage, space=FURTHER).phase()
            phase.grid(POINTS[3:6], group="coarse")
            phase.trials()
    return "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "", "lr-1\n", "\x1b[31m-1", 7, None, ["lr-01"]])
def test_a_trial_that_names_a_folder_outside_is_refused(name):
    """Whoever shares the storage can write it."""
    bench = Bench()
    bench.phase().grid(POINTS[:1], group="coarse")
    bench.phase()._study.of.enqueue_trial({"lr": 0.1}, user_attrs={"group": "coarse", "place": 1, "workdir": name})
    with pytest.raises(WorkdirError, match="which no trial has; choose another --storage") as raised:
        bench.phase().trials()
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '0.', '0.1') WHERE key = 'rung-10'",
        "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'rung-10'",
        "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'rung-10'",
        "UPDATE trial_user_attributes SET value_json = '1' WHERE key = 'place'",
        "UPDATE trial_user_attributes SET value_json = '\"other\"' WHERE key = 'group'",
        "UPDATE trial_params SET param_value = param_value * 2",
        "UPDATE trial_values SET value = value / 2",
        "UPDATE trial_intermediate_values SET intermediate_value = intermediate_value / 2",
        "UPDATE trials SET state = 'COMPLETD'",
        "UPDATE trial_user_attributes SET value_json = replace(value_json, '0.01', '0.02') WHERE key = 'decision'",
        "DROP TABLE trial_params",
    ],
)
def test_a_value_that_changed_in_the_storage_is_one_line(tmp_path, sql):
    assert is_refused(stored(tmp_path), sql)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE trial_params SET param_value = param_value / 2 WHERE param_name = 'model.dropout'",
        "UPDATE trial_params SET param_value = 2 - param_value WHERE param_name = 'data.augment'",
        "UPDATE trial_params SET param_value = 7 WHERE param_name = 'data.augment'",
        "UPDATE trial_params SET param_name = 'data.argument' WHERE param_name = 'data.augment'",
        "UPDATE trial_params SET distribution_json = replace(distribution_json, 'flip', 'flop')",
        "DELETE FROM trial_params WHERE param_name = 'model.dropout'",
        "UPDATE trial_system_attributes SET value_json = replace(value_json, 'flip', 'flop')",
        "UPDATE trial_system_attributes SET value_json = replace(value_json, '0.25', '0.26')",
    ],
)
def test_a_further_key_that_changed_in_the_storage_is_one_line(tmp_path, sql):
    points = [point | {"model.dropout": 0.25, "data.augment": "flip_lr(0.5)"} for point in POINTS[4:5]]
    path = stored(tmp_path, points=[*points, {**points[0], "data.augment": ""}])
    assert is_refused(path, sql)


@pytest.mark.parametrize("name", ["trials.db", "trials.db-journal", "trials.db-wal"])
def test_a_storage_that_is_a_link_is_refused(tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(WorkdirError, match=f"{name} is a link"):
        with storage_lib.open_storage(f"sqlite:///{tmp_path / 'trials.db'}"):
            pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_trials_of_an_earlier_version_have_no_checksums():
    bench = Bench()
    study = bench.phase()._study.of
    study.set_user_attr("points of coarse", POINTS[3:5])
    for place, point in enumerate(POINTS[3:5]):
        stored = {key: max(value, 1e-12) for key, value in point.items()}
        study.enqueue_trial(stored, user_attrs={"group": "coarse", "place": place})
    outcome = Outcome(steps=10, val_accuracy=0.99, val_examples=100)
    bench.storage.set_trial_user_attr(study.get_trials()[1]._trial_id, "rung-10", outcome._asdict())
    phase = bench.phase()
    phase.grid(POINTS, group="coarse")
    best, other = phase.halve("coarse", [10], keep=2, tell=_silent)
    assert (best.number, best.last, other.point, bench.ran) == (1, outcome, POINTS[3], [(0, 10)])


def test_a_trial_that_a_worker_of_an_earlier_version_took_is_its_own_once_signed(monkeypatch):
    monkeypatch.setattr(search, "RUNNING_LATE", 0.0)
    bench = Bench()
    bench.phase().grid(POINTS[3:6], group="coarse")
    study = bench.phase()._study.of
    study.ask()  # and was killed
    study.ask().set_user_attr("worker", "other")
    found = bench.phase().begin("coarse", 10, tell=_silent)
    assert bench.ran == [(0, 10), (2, 10)] == [(t.number, 10) for t in found]
    assert [t.point for t in found] == [POINTS[3], POINTS[5]]
