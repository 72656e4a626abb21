"""A phase of a study: halving, killed anywhere, shared by workers. Nothing is trained here: `run` is a formula."""

import math
import threading

import optuna
import pytest

from linseed.trainer.errors import ConfigError, LinseedError
from linseed.trainer.tuning import search
from linseed.trainer.tuning.search import Phase, Trial, best_within_a_standard_error
from linseed.trainer.tuning.trials import Outcome

POINTS = [{"lr": 10.0**-exponent, "weight_decay": decay} for exponent in (1, 2, 3) for decay in (0.0, 1e-4, 1e-2)]
BOUNDS = {"lr": (1e-3, 1e-1), "weight_decay": (1e-5, 1e-3)}


class Killed(BaseException):
    """A kill -9, as far as the phase can tell."""


class Bench:
    """Phases over one storage whose trials are a formula, and a log of what ran."""

    def __init__(self, storage=None):
        self.storage = storage or optuna.storages.InMemoryStorage()
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
        return Phase(self.storage, "study", name="search", worker=worker, config_sha256=config, run=self.run)

    def study(self, worker="a"):
        """A grid cut down, then points sampled around its winner: what a run of the procedure does in steps 4 and 5."""
        phase = self.phase(worker)
        phase.grid(POINTS, group="coarse")
        survivors = phase.halve("coarse", [10, 30], keep=2, tell=_silent)
        drawn = phase.draw(3, group="refine", sampler="tpe", bounds=BOUNDS, seed=0)
        carried = [t.point for t in survivors]
        phase.grid([*carried, *drawn], group="refine", continues=[t.workdir for t in survivors])
        return phase.halve("refine", [30, 90], keep=2, tell=_silent)


def _silent(line):
    """Says nothing."""


def shown(trials):
    return [str((t.id, t.workdir, t.point, t.rungs, t.state, t.attributes.get("reason"))) for t in trials]


@pytest.fixture(autouse=True, scope="module")
def at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SETTLE", 0.01)
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
    with search.open_storage(f"sqlite:///{tmp_path / 'trials.db'}") as storage:
        assert shown(Bench(storage).study()) == shown(straight[1])


def test_sampled_points_lie_within_the_bounds_and_differ(straight):
    refine = [t for t in straight[0].phase().trials() if t.attributes["group"] == "refine"]
    sampled = [t for t in refine if t.attributes["place"] >= 2]
    assert len(sampled) == len({t.point["lr"] for t in sampled}) == 3
    for key, (low, high) in BOUNDS.items():
        assert all(low <= t.point[key] <= high for t in sampled)


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
        (optuna.study.Study, "ask"),
        (optuna.study.Study, "enqueue_trial"),
        (optuna.study.Study, "set_user_attr"),
        (optuna.study.Study, "tell"),
        (optuna.trial.Trial, "report"),
        (optuna.trial.Trial, "set_user_attr"),
    ],
)
def test_killed_within_the_storage_nothing_is_lost(straight, monkeypatch, owner, moment):
    monkeypatch.setattr(search, "_SIGNING", 0.0)
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
    monkeypatch.setattr(search, "_POLL", 0.01)
    bench = Bench()
    found, threads = {}, []
    for worker in ("a", "b"):

        def work(worker=worker):
            found[worker] = bench.study(worker)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    assert [t.number for t in found["a"]] == [t.number for t in found["b"]]
    assert len(set(bench.ran)) == len(bench.ran) == len(straight[0].ran)
    assert [t.point for t in bench.phase().trials()] == [t.point for t in straight[0].phase().trials()]


def test_what_one_worker_planned_the_others_read(monkeypatch):
    monkeypatch.setattr(search, "_POLL", 0.01)
    bench = Bench()
    assert bench.phase("a").plan("steps", lambda: 10) == bench.phase("b").plan("steps", lambda: 20) == 10
    assert bench.phase("a").plan("steps", lambda: 30, is_stale=lambda value: value == 10) == 30
    monkeypatch.setattr(search, "RUNNING_LATE", 0.05)
    assert bench.phase("b").plan("more", lambda: 40) == 40  # the planner went away


def test_a_worker_that_went_away_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(search, "_POLL", 0.01)
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


def test_a_study_of_another_config_is_refused():
    bench = Bench()
    bench.phase()
    with pytest.raises(ConfigError, match="belongs to another config"):
        bench.phase(config="other")


def test_a_storage_that_does_not_answer_is_one_line_without_its_password():
    with pytest.raises(ConfigError, match="does not answer") as raised:
        with search.open_storage("nosuchdb://user:secret@localhost/none"):
            pass
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def judged(number, accuracy, decay, **scores):
    outcome = Outcome(steps=1, val_accuracy=accuracy, val_examples=1000, **scores)
    point = {"lr": 0.1, "weight_decay": decay}
    return Trial(
        str(number), str(number), number, point, {1: outcome}, frozenset(), optuna.trial.TrialState.COMPLETE, {}
    )


def test_the_monitor_s_score_decides_with_its_own_error():
    often, even = judged(0, 0.98, 0.0, score=-0.7, score_error=0.0), judged(1, 0.9, 0.0, score=-0.3, score_error=0.0)
    assert best_within_a_standard_error([often, even]) == even
    decayed = judged(2, 0.5, 1e-2, score=0.58, score_error=0.02)
    first, worse = (judged(number, 0.9, 0.0, score=score, score_error=0.03) for number, score in ((3, 0.6), (4, 0.56)))
    assert best_within_a_standard_error([first, worse, decayed]) == decayed


def test_of_equals_the_one_with_the_most_decay_wins():
    error = math.sqrt(0.9 * 0.1 / 1000)
    near, far = judged(1, 0.9 - 0.9 * error, 1e-3), judged(2, 0.9 - 1.1 * error, 1e-2)
    assert best_within_a_standard_error([judged(0, 0.9, 0.0), near, far]) == near
