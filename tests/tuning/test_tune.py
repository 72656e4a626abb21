"""The seven steps on a tiny network: what they leave behind, killed and continued, refused."""

import importlib.util
import json
import re
import shutil

import ml_collections
import optuna
import pytest
from support.runs import SHARED

from linseed.configs import digits
from linseed.scripts.faults import studies
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import ConfigError, WorkdirError
from linseed.trainer.run.console import Quiet
from linseed.trainer.tuning import budget, ranking, search, trials, tune

BUDGET = "2600steps"


def tiny(**changes) -> ml_collections.ConfigDict:
    config = resolve(digits.get_config())
    with config.unlocked():
        config.data.source = dict(name="synthetic", num_examples=400, num_classes=4, image_size=8, channels=1, seed=0)
        config.model = dict(name="mlp", widths=(16,), normalization="none", dropout=0.0)
    flat = {
        "data.augment": "",
        "data.val_fraction": 0.2,
        "optimizer.lr": 3.0,
        "optimizer.weight_decay": 0.5,
        "ema_decay": 0.0,
        "horizon.epochs": 20.0,
        "schedule.warmup_epochs": 1.0,
        "eval.every_epochs": 5.0,
        "eval.batch_size": 80,
    }
    config.update_from_flattened_dict({**flat, **changes})
    return config


class Lines(Quiet):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def run(workdir, *, config=None, step="all", spend=BUDGET, **options):
    keys = dict(storage="", study="study", sampler="tpe", rates=(), decays=(), name="tiny", writer=Quiet())
    keys |= dict(shared=SHARED) | options
    limit = budget.parse(spend) if spend else budget.UNLIMITED
    return tune.tune(config or tiny(), workdir, step=step, budget=limit, **keys)


def shown(record):
    """The trials and the winner, without what a clock measured."""
    clock = ("seconds", "step_seconds")
    found = [
        {key: value for key, value in trial.items() if key not in (*clock, "rungs")}
        | {"rungs": [{key: value for key, value in rung.items() if key not in clock} for rung in trial["rungs"]]}
        for trial in record["trials"]
    ]
    return found, record["winner"], [(step["name"], step["summary"], step["findings"]) for step in record["steps"]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    return run(workdir), workdir


def test_a_study_finds_a_better_config_and_names_what_was_wrong(straight):
    record, _ = straight
    assert [step["name"] for step in record["steps"]] == [
        "check",
        "overfit",
        "lr",
        "coarse",
        "refine",
        "curves",
        "loop",
    ]
    assert "lr_too_high" in {finding["cause"] for step in record["steps"] for finding in step["findings"]}
    assert record["winner"]["val_accuracy"] > 0.9 and record["winner"]["lr"] < 3.0  # chance is 0.25
    assert "the learning rate is too high" in record["verdict"]


def test_the_winner_is_a_config_that_runs_and_differs_as_it_says(straight):
    record, workdir = straight
    spec = importlib.util.spec_from_file_location("winner", workdir / "winner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config = resolve(config)
    assert canonical.differences(resolve(tiny()), config) == record["winner"]["differences"]
    assert config.optimizer.lr == record["winner"]["lr"]


def test_no_trial_opens_the_test_split(straight):
    assert not list(straight[1].rglob("test_openings.jsonl"))
    assert all(json.loads(path.read_text())["test"] is None for path in straight[1].rglob("result.json"))


def test_the_budget_is_kept_and_no_step_is_trained_twice(straight):
    record, workdir = straight
    assert record["steps_used"] <= 2600
    for path in workdir.glob("trials/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == sorted(set(steps))


def test_step_3_leaves_out_as_many_train_images_as_validation_has(straight):
    record, workdir = straight
    names = [trial["workdir"] for trial in record["trials"]]
    configs = {name: json.loads((trials.folder(workdir, name) / "config.json").read_text()) for name in names}
    used = {name.partition("-")[0]: config["data"]["train_examples"] for name, config in configs.items()}
    assert used["lr"] == 320 - 80 and used["search"] == used["final"] == 0


def test_a_finished_study_is_not_run_again(straight, monkeypatch):
    record, workdir = straight
    monkeypatch.setattr(trials, "train_and_evaluate", None)
    assert shown(run(workdir)) == shown(record)


def test_killed_after_any_trial_a_study_ends_as_if_nothing_happened(straight, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    original, calls = trials.train_and_evaluate, []

    def dies(*args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 9, 17):
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) in (5, 24, 30):
            raise Killed
        return result

    monkeypatch.setattr(trials, "train_and_evaluate", dies)
    kills = 0
    while kills < 10:
        try:
            record = run(tmp_path)
            break
        except Killed:
            kills += 1
    assert kills == 6
    theirs, ours = (json.loads(json.dumps(shown(r)).replace(str(w), "")) for r, w in (straight, (record, tmp_path)))
    assert theirs == ours


def test_each_step_can_be_run_alone_and_says_what_it_needs(straight, tmp_path):
    _, workdir = straight
    for step in ("refine", "final", "curves"):
        with pytest.raises(ConfigError, match="run the step 'coarse' first"):
            run(tmp_path, step=step)
    shutil.copytree(workdir, tmp_path / "copy")
    record = run(tmp_path / "copy", step="curves")
    assert [step["name"] for step in record["steps"]].count("curves") == 1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(step="corse"), ConfigError, "did you mean 'coarse'"),
        (dict(rates=(0.1,), decays=(1e-4, 1e-4)), ConfigError, "leaves nothing to choose"),
        (dict(rates=(-0.1, 1.0)), ConfigError, "--rates should be above 0"),
        (dict(sampler="grid"), ConfigError, "known: random, tpe"),
        (dict(storage="nosuchdb://host/x"), ConfigError, "does not answer"),
        (dict(config=tiny(**{"optimizer.lr": 0.1})), WorkdirError, "optimizer.lr: 3.0 -> 0.1"),
        (dict(config=tiny(**{"model.widths": ()})), ConfigError, "widths"),
        (dict(config=tiny(**{"data.batch_size": 0})), ConfigError, "batch_size"),
    ],
)
def test_what_cannot_run_is_one_line_and_nothing_is_lost(straight, options, error, says):
    before = (straight[1] / "study.json").read_text()
    with pytest.raises(error, match=says) as raised:
        run(straight[1], **options)
    assert "\n" not in str(raised.value)
    assert json.loads((straight[1] / "study.json").read_text())["trials"] == json.loads(before)["trials"]


@pytest.mark.parametrize("name", ["halve study.json", "junk trials.db", "lose trials.db"])
def test_a_damaged_file_of_a_study_is_named_and_its_cure_works(straight, tmp_path, name):
    assert studies.damaged(straight[1], tmp_path / "copy", name=name, go_on=run) == ""


class Paper:
    """A study that is its record alone."""

    def __init__(self):
        self.record = {"allotted": {}, "seconds_used": 60.0}

    def save(self, **changes):
        self.record.update(changes)


class Trials:
    """A phase whose trials took what they took."""

    def __init__(self, *outcomes):
        self._outcomes = outcomes

    def trials(self):
        names = [("a", "a"), ("b", "b"), ("c", "a")]  # c goes on with a
        return [
            ranking.Trial(name, workdir, number, {}, {outcome.steps: outcome}, frozenset(), None, {})
            for number, ((name, workdir), outcome) in enumerate(zip(names, self._outcomes, strict=False))
        ]


def outcome(steps):
    """2 seconds of start and evaluation, a tenth of a second a step."""
    return trials.Outcome(steps=steps, seconds=2.0 + 0.1 * steps, step_seconds=0.1)


def test_a_continued_trial_is_counted_once_and_time_is_turned_into_steps():
    phases = [Trials(outcome(100), outcome(50), outcome(300))]
    ledger = budget.Ledger(Paper(), phases, budget=budget.parse("1000steps"))
    assert ledger.used_steps() == 350 and ledger.left(runs=9) == 650
    ledger = budget.Ledger(Paper(), phases, budget=budget.parse("2m"))
    assert ledger.left(runs=5) == pytest.approx((120 - 60 - 5 * 2) / 0.1)
    assert ledger.left(runs=5, evaluations_per_step=0.01) == pytest.approx(50 / 0.12)


def test_a_length_once_given_stays_and_none_is_found_anew_with_another_budget():
    storage = optuna.storages.InMemoryStorage()
    phase = search.Phase(storage, "study", name="search", worker="a", identity="", space={}, run=None)
    small, large = (budget.Ledger(Paper(), [phase], budget=budget.parse(text)) for text in ("1000steps", "2000steps"))
    assert [small.allot(phase, "coarse", lambda steps=steps: steps) for steps in (40.7, 90)] == [40, 40]
    assert [ledger.allot(phase, "refine-1", lambda: 9.9) for ledger in (small, large)] == [0, 0]
    assert [ledger.allot(phase, "refine-2", lambda: 5) for ledger in (small, small)] == [0, 0]
    assert large.allot(phase, "refine-2", lambda: 12) == small.allot(phase, "refine-2", lambda: 12) == 12
    with pytest.raises(ConfigError, match="no room for the step 'coarse'.*all results are kept"):
        small.refuse("coarse")


@pytest.mark.parametrize(("text", "seconds", "steps"), [("90s", 90, None), ("1.5h", 5400, None), ("40m", 2400, None),
                                                        ("4000steps", None, 4000)])  # fmt: skip
def test_budgets_are_times_or_steps(text, seconds, steps):
    assert budget.parse(text) == (seconds, steps, text)


@pytest.mark.parametrize("text", ["", "40", "m", "0s", "-3m", "4 epochs"])
def test_what_is_no_budget_is_one_line(text):
    with pytest.raises(ConfigError, match="30m"):
        budget.parse(text)


@pytest.mark.parametrize("spend", ["20steps", "300steps"])
def test_a_budget_without_room_for_every_step_is_refused_before_the_first_trial_with_the_least_that_would_do(
    tmp_path, monkeypatch, spend
):
    monkeypatch.setattr(trials, "train_and_evaluate", None)
    with pytest.raises(ConfigError, match="the least that would do is --budget=[0-9]+steps") as refused:
        run(tmp_path, spend=spend)
    least = int(re.search("--budget=([0-9]+)steps$", str(refused.value))[1])
    with pytest.raises(ConfigError, match=f"--budget={least}steps$"):
        run(tmp_path, spend=f"{least - 1}steps")
    with pytest.raises(TypeError, match="not callable"):  # it would begin to train
        run(tmp_path, spend=f"{least}steps")


def test_the_least_budget_comes_to_a_winner(tmp_path):
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "refused", spend="20steps")
    least = re.search("--budget=([0-9]+steps)$", str(refused.value))[1]
    record = run(tmp_path / "study", spend=least)
    assert record["winner"] and record["steps_used"] <= budget.parse(least).steps


def test_a_budget_of_time_is_refused_once_a_trial_shows_that_later_steps_do_not_fit():
    phases = [Trials(outcome(100))]
    ledger = budget.Ledger(Paper(), phases, budget=budget.parse("2m"))
    ledger.refuse_without_time(starts=5, steps=499)  # 60 s are used, 10 and 49.9 are to come
    with pytest.raises(ConfigError, match="100 ms here, and 501 are to come; the least .* about --budget=121s"):
        ledger.refuse_without_time(starts=5, steps=501)
