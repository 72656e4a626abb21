"""The page of a study: whole, self-contained, and made of whatever a study has so far."""

import json
import math
import re

import pytest

from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.report import page, plots, shown


def trial(name, phase, lr, weight_decay, *, state="complete", reason="", accuracies=(0.25, 0.5)):
    rungs = [
        {
            "steps": 60 * 3**place,
            "epochs": 0.25 * 3**place,
            "train_loss": 2.0 - accuracy,
            "val_loss": 2.125 - accuracy,
            "val_accuracy": accuracy,
        }
        for place, accuracy in enumerate(accuracies)
    ]
    return {
        "id": name,
        "phase": phase,
        "lr": lr,
        "weight_decay": weight_decay,
        "seed": 0,
        "schedule": "constant",
        "state": state,
        "reason": reason,
        "rungs": rungs,
        "seconds": 33.25,
    }


NOT_FINITE = "the loss of step 12 is not finite"
NOT_AMONG = "not among the best 3 of 9 after 60 steps"
STUDY = {
    "config_name": "cifar10_small",
    "config": {"optimizer": {"name": "momentum", "lr": 20.0}},
    "config_sha256": "c0ffee",
    "budget": "40m",
    "seconds_used": 2311.0,
    "steps_used": 5210,
    "stopped": "the budget is spent",
    "verdict": "The rate was 200 times too high.",
    "steps": [
        {
            "step": 1,
            "name": "check",
            "title": "Initial loss",
            "ok": True,
            "summary": "as expected",
            "findings": [],
            "numbers": {"initial loss": 2.31, "expected": 2.303},
        },
        {
            "step": 2,
            "name": "overfit",
            "title": "Overfit",
            "ok": False,
            "summary": "87 % after 200 steps",
            "findings": [{"cause": "lr_too_high", "evidence": "it rose to 14.2", "remedy": "a lower rate"}],
            "numbers": {},
        },
        {"step": 3, "name": "lr", "title": "Rate", "ok": True, "summary": "0.1", "chosen": {"lr": 0.1}},
    ],
    "trials": [
        trial("lr-0", "lr", 0.01, 1e-5, accuracies=(0.125, 0.1875)),
        trial("lr-1", "lr", 0.1, 1e-5),
        trial("lr-2", "lr", 1.0, 1e-5, state="failed", reason=NOT_FINITE, accuracies=()),
        trial("coarse-0", "coarse", 0.1, 0.0, accuracies=(0.25, 0.59375)),
        trial("coarse-1", "coarse", 0.1, 1e-4, accuracies=(0.25, 0.625)),
        trial("coarse-2", "coarse", 0.3, 0.0, state="dropped", reason=NOT_AMONG, accuracies=(0.15625,)),
        trial("coarse-3", "coarse", 0.3, 1e-4, state="failed", reason=NOT_FINITE, accuracies=()),
        trial("refine-0", "refine", 0.12, 0.0),
        trial("refine-1", "refine", 0.08, 2e-4, accuracies=(0.5, 0.8125)),
        trial("refine-2", "refine", 0.09, 3e-4, state="running", accuracies=()),
    ],
    "winner": {
        "trial": "refine-1",
        "lr": 0.08,
        "weight_decay": 2e-4,
        "val_accuracy": 0.8125,
        "val_loss": 1.3125,
        "epochs": 0.75,
        "config_file": "winner.py",
        "differences": ["optimizer.lr: 20.0 -> 0.08", "optimizer.weight_decay: 1.0 -> 0.0002"],
    },
    "next": ["linseed train --config=runs/winner.py", "train longer"],
}


def records(values):
    """Records of the steps 10, 20, ..., of which the last is an evaluation."""
    made = [{"step": 10 * (i + 1), "epoch": i, "train_loss": value, "lr": 0.1} for i, value in enumerate(values)]
    made[-1] |= {"val_loss": 1.0, "val_accuracy": 0.5}
    return made


CURVES = {"coarse-0": records([2.0, 1.5, 1.0]), "coarse-3": records([2.0, 1e308, math.nan])}


def written(tmp_path, study, curves=None):
    page.write(tmp_path / "study.html", study, curves or {})
    return (tmp_path / "study.html").read_text()


def is_self_contained(html):
    outside = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?(?!["']?#)[^\s>]*|url\((?!#)|@import""", html)
    return not outside and not re.search(r"<(script|link|img|iframe|object|base)\b", html)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page of STUDY: drawing is nearly all the time these tests take."""
    return written(tmp_path_factory.mktemp("full"), STUDY, CURVES)


def test_the_full_page_says_all_of_the_study(full):
    for text in ("cifar10_small", "40m", "c0ffee", "5,210", "2,311 s", STUDY["stopped"], STUDY["verdict"]):
        assert text in full
    for text in ("87 % after 200 steps", CAUSES["lr_too_high"], "it rose to 14.2", "a lower rate", "2.31", "2.303"):
        assert text in full
    for text in ("optimizer.weight_decay", "20.0", "winner.py", "train longer", NOT_FINITE, NOT_AMONG):
        assert text in full
    assert full.index(STUDY["verdict"]) < full.index("<h2>")
    assert is_self_contained(full)


def test_every_figure_of_every_trial_is_in_the_table(full):
    table = full.split("<h2>All trials</h2>")[1]
    rows = {body.split("</td>")[0].rpartition(">")[2]: body for body in table.split("<tbody")[1:]}
    assert list(rows) == [one["id"] for one in STUDY["trials"]]
    for one in STUDY["trials"]:
        body = rows[one["id"]]
        for cell in (f"{one['lr']:g}", f"{one['weight_decay']:g}", "constant", "33.2", one["state"]):
            assert f">{cell}" in body
        for rung in one["rungs"]:
            for cell in (f"{rung['steps']}", f"{rung['epochs']:g}", f"{100 * rung['val_accuracy']:.2f} %"):
                assert f">{cell}<" in body
            for cell in (f"{rung['train_loss']:.4f}", f"{rung['val_loss']:.4f}"):
                assert f">{cell}<" in body


def test_each_of_the_seven_steps_has_its_mark(full):
    marks = re.findall(r'<li class="([a-z ]+)"><span class="mark">. \1</span>\n<div><strong>(\d)\. ', full)
    assert marks == [("ok", "1"), ("alarm", "2"), ("ok", "3"), *(("not run", step) for step in "4567")]


@pytest.mark.parametrize("key", [*STUDY, "all"])
def test_any_part_may_be_absent_or_null(tmp_path, key):
    # One that has not begun, without pictures; the picture of the rates looks at the steps.
    trials = STUDY["trials"][1:2] if key == "steps" else [trial("final-0", "final", 0.1, 0.0, accuracies=())]
    study = STUDY | {"trials": trials}
    absent = {} if key == "all" else {name: part for name, part in study.items() if name != key}
    null = dict.fromkeys(STUDY) if key == "all" else study | {key: None}
    for part in (absent, null):
        html = written(tmp_path, part)
        assert is_self_contained(html) and "<h1>" in html and "None" not in html


@pytest.mark.parametrize("phase", ["lr", "coarse", "refine", "final", "another"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_phase_alone_makes_a_page(tmp_path, phase, count):
    trials = [trial(f"t{i}", phase, 0.1, 0.0) for i in range(count)]
    html = written(tmp_path, {"trials": trials})
    assert "<svg" in html and html.count("<tbody") == count


@pytest.mark.parametrize(
    "phase, key",
    [
        *(("lr", key) for key in ("lr", "train_loss", "steps", "seconds")),
        *((phase, key) for phase in ("coarse", "refine") for key in ("lr", "weight_decay", "val_accuracy")),
    ],
)
def test_a_figure_that_is_no_number_is_no_end(tmp_path, phase, key):
    trials = []
    for i, value in enumerate(
        (None, "NaN", "Infinity", "-inf", math.nan, math.inf, -1.0, 0.0, 1e-320, 1e308, 10**400, "<b>")
    ):
        one = trial(f"t{i}", phase, 0.1, 1e-4)
        (one["rungs"][-1] if key in one["rungs"][-1] else one)[key] = value
        trials.append(one)
    html = written(tmp_path, {"trials": trials})
    assert html.count("<tbody") == len(trials) and "<b>" not in html


def test_what_is_written_does_not_become_markup(tmp_path):
    bad = "<script>alert(1)</script>\"'&$x^{ $\ud800\u4e2d"

    def spoil(value):
        if isinstance(value, dict):
            return {spoil(key) if key == "expected" else key: spoil(inner) for key, inner in value.items()}
        return (
            [spoil(inner) for inner in value] if isinstance(value, list) else bad if isinstance(value, str) else value
        )

    study = spoil(STUDY)
    study["trials"] = [one | {"phase": phase} for one in study["trials"][:2] for phase in ("lr", bad)]
    html = written(tmp_path, study, {bad: CURVES["coarse-0"]})
    assert "<script" not in html and "&lt;script&gt;" in html


def test_sixty_trials_of_two_seeds_fit(tmp_path):
    trials = [trial(f"c{i}", "coarse", 10.0 ** -(i % 6), 10.0 ** -(i % 5), accuracies=(i / 60,)) for i in range(60)]
    html = written(tmp_path, {"trials": trials})
    assert html.count("<tbody") == 60 and "mean of 2" in html


def test_the_same_study_gives_the_same_page(tmp_path):
    study = STUDY | {"trials": STUDY["trials"][3:6]}
    assert written(tmp_path, study, CURVES) == written(tmp_path, study, CURVES)


def test_every_picture_says_what_it_shows(full):
    assert full.count("<svg") == len(re.findall(r'<svg role="img" aria-label="[^"]{30,}"', full)) > 4
    assert "0.01: 1.81; 0.1: 1.5; 1: diverged; chosen 0.1" in full


def read(phase):
    return [shown.read_trial(one) for one in STUDY["trials"] if one["phase"] == phase]


def test_the_rate_search_marks_the_chosen_rate_and_those_that_diverged():
    lines = {line.get_label(): line for line in plots.rate_search(read("lr"), chosen=0.1).figure.axes[0].get_lines()}
    assert lines["to the end"].get_xydata().tolist() == [[0.01, 1.8125], [0.1, 1.5]]
    assert list(lines["diverged"].get_xdata()) == [1.0]
    assert set(lines["chosen: 0.1"].get_xdata()) == {0.1}


def test_a_loss_far_above_the_untrained_one_does_not_flatten_the_others():
    trials = [trial("a", "lr", 0.1, 0.0), trial("b", "lr", 1.0, 0.0)]
    trials[1]["rungs"][-1]["train_loss"] = 1e6
    axes = plots.rate_search([shown.read_trial(one) for one in trials], untrained=2.3).figure.axes[0]
    assert axes.get_ylim()[1] < 5
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines["off the scale"] == [1.0] and lines["to the end"] == [0.1]
    both = {"a": records([2.0, 1.0, 0.5]), "b": records([2.0, 1e6, 1e7])}
    loss, _ = plots.curves([shown.read_trial(one) for one in trials], records=both, bold="a")
    assert loss.figure.axes[0].get_ylim()[1] < 5 and "diverged" in loss.caption


def test_each_cell_of_the_grid_says_what_became_of_it():
    axes = plots.heat_map(read("coarse")).figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "59.38 %", (0, 1): "62.50 %", (1, 0): "15.62 %\ndropped", (1, 1): "failed"}
    framed = [patch for patch in axes.patches if not patch.get_fill()]
    assert len(framed) == 1 and framed[0].get_x() < 0 < 1 < framed[0].get_y() + framed[0].get_height()


def test_text_in_a_cell_is_read_in_black_and_white():
    axes = plots.heat_map(read("coarse")).figure.axes[0]
    for patch in axes.patches:
        if patch.get_fill():
            # Contrast of WCAG, (L + 0.05) / (0.05), L the linear luminance; 4.5 is the least for text.
            assert (patch.get_facecolor()[0] ** 2.2 + 0.05) / 0.05 > 4.5


def test_no_decay_has_its_place_below_the_least_decay():
    axes = plots.scatter(read("refine")).figure.axes[0]
    ticks = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert ticks["0"] == pytest.approx(2e-5)
    assert {(0.12, 2e-5), (0.08, 2e-4)} <= {tuple(line.get_xydata()[0].round(9)) for line in axes.get_lines()}


def test_points_drawn_at_random_are_no_grid():
    def at(places):
        return [shown.read_trial(trial("x", "coarse", *place)) for place in places]

    assert plots.is_grid(at([(lr, decay) for lr in (0.1, 0.3) for decay in (0, 1e-4)]))
    assert plots.is_grid(at([(0.1, 0.0)]))
    assert not plots.is_grid(at([(0.1 * i, 1e-4 * i) for i in range(1, 9)]))


def test_ranks_put_a_trial_that_went_the_whole_way_before_one_that_was_dropped():
    dropped = trial("dropped", "refine", 0.1, 0.0, state="dropped", accuracies=(0.9,))
    order = [one.id for one in shown.ranked([shown.read_trial(dropped), *read("refine")])]
    assert order == ["refine-1", "refine-0", "dropped", "refine-2"]


def test_a_trial_without_records_is_drawn_from_its_rungs():
    loss, accuracy = plots.curves(read("refine")[:1], records={}, bold="")
    assert loss.figure.axes[0].get_lines()[0].get_xydata().tolist() == [[60, 1.75], [180, 1.5]]
    assert accuracy.figure.axes[0].get_lines()[0].get_xydata().tolist() == [[60, 0.25], [180, 0.5]]


def test_the_winner_stands_out_and_elsewhere_the_best_of_the_phase():
    for phase, bold in (("refine", "refine-1"), ("coarse", "coarse-1")):
        trials = read(phase)
        assert page._bold(trials, winner="refine-1") == bold
        drawn = [one for one in trials if one.rungs]
        lines = plots.curves(trials, records={}, bold=bold)[0].figure.axes[0].get_lines()
        widest = max(range(len(drawn)), key=lambda i: lines[i].get_linewidth())
        assert drawn[widest].id == bold


def test_the_config_that_was_given_is_kept_whole(full):
    assert json.dumps(STUDY["config"], indent=2).replace('"', "&#34;") in full


def test_further_keys_have_a_column_in_each_table_and_a_line_of_the_winner(tmp_path):
    further = {"further": {"model.dropout": 0.125, "data.augment": "flip_lr(0.5)"}}
    one, winner = trial("search-00", "refine", 0.1, 1e-4) | further, STUDY["winner"] | {"trial": "search-00"} | further
    html = written(tmp_path, {"trials": [trial("lr-00", "lr", 0.1, 1e-5), one], "winner": winner})
    assert html.count("<th>model.dropout</th>") == html.count("<th>data.augment</th>") == 2  # by rank, and of all
    assert html.count(">0.125</td>") == 3 and html.count(">flip_lr(0.5)</td>") == 3
    assert html.split("<h2>All trials</h2>")[1].count('<td rowspan="2">–</td>') == 2  # step 3 has no further keys
