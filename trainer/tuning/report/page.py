"""`study.html`: one self-contained page per study, made only from `study.json` and the records of its trials."""

import json
import math
from pathlib import Path

import jinja2

from linseed.trainer import files
from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.report import plots, shown
from linseed.trainer.tuning.report.template import STYLE, TEMPLATE

STEPS = {
    1: "Initial loss",
    2: "Overfit a small sample",
    3: "Find the learning rate",
    4: "Coarse grid",
    5: "Refine",
    6: "Look at the curves",
    7: "Go on, or stop",
}
_PHASES = {
    "overfit": STEPS[2],
    "lr": STEPS[3],
    "plain": "Without augmentation",
    "unregularised": "Without the regulariser",
    "own decay": "With the decay of the config",
    "coarse": STEPS[4],
    "refine": STEPS[5],
    "final": "Final runs",
}
_MARKS = {"ok": "✓ ok", "alarm": "⚠ alarm", "not run": "– not run"}
_SHORT = {"weight_decay": "weight decay", "lr": "learning rate"}


def write(path: Path, study: dict, curves: dict[str, list[dict]]):
    """Writes the page of `study` to `path`.

    study: the content of `study.json`; any part may be absent, and a number may be null or a word such as "NaN".
    curves: trial id -> its records, from `read_records`; a trial without records is drawn from its rungs.
    """
    page = _PAGE.render(_content(study, curves))
    # A file name may hold bytes that are no characters.
    files.write(path, page)


def _content(study, curves):
    trials = [shown.read_trial(values) for values in study.get("trials") or ()]
    winner = study.get("winner") or {}
    phases = {
        phase: [trial for trial in trials if trial.phase == phase] for phase in dict.fromkeys(t.phase for t in trials)
    }
    return {
        "style": STYLE,
        "title": f"Hyperparameter study of {study.get('config_name') or 'a config'}",
        "study": study,
        "facts": _facts(study, trials),
        "steps": _steps(study.get("steps") or ()),
        "marks": _MARKS,
        "causes": CAUSES,
        "searches": _searches(study, phases),
        "phases": [
            (_PHASES.get(phase, phase), drawings)
            for phase, inside in phases.items()
            if (drawings := plots.curves(inside, records=curves, bold=_bold(inside, winner=winner.get("trial"))))
        ],
        "winner": winner,
        "winner_figures": _winner_figures(winner),
        "differences": [_difference(line) for line in winner.get("differences") or ()],
        "trials": trials,
        "further": dict.fromkeys(key for trial in trials for key, _ in trial.further),
        "config": json.dumps(study["config"], indent=2) if study.get("config") else "",
    }


def _facts(study, trials):
    states = [trial.state for trial in trials]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    used = shown.number(study.get("seconds_used"))
    winner = study.get("winner") or {}
    facts = {
        "best": f"{shown.percent(winner.get('val_accuracy'))} validation accuracy{winner.get('beside', '')}"
        if winner
        else "",
        "stopped": study.get("stopped") or "not yet: the study is under way",
        "budget": study.get("budget"),
        "time used": f"{used / 60:,.1f} min ({used:,.0f} s)" if math.isfinite(used) else "",
        "steps used": shown.count(study["steps_used"]) if study.get("steps_used") is not None else "",
        "trials": f"{len(trials)}: {counted}" if trials else "none",
        "config (sha256)": study.get("config_sha256"),
    }
    return [(name, value) for name, value in facts.items() if value]


def _steps(steps):
    """(number, content) of each of the seven steps, whether it ran or not."""
    entries = []
    for number, title in STEPS.items():
        ran = [step for step in steps if step.get("step") == number]
        for step in ran:
            mark = "ok" if step.get("ok") else "alarm"
            figures = [(name, shown.fact(value)) for name, value in (step.get("numbers") or {}).items()]
            chosen = (step.get("chosen") or {}).items()
            figures += [(f"chosen {_SHORT.get(name, name)}", shown.fact(value)) for name, value in chosen]
            entries.append((number, step | {"mark": mark, "title": step.get("title") or title, "figures": figures}))
        if not ran:
            entries.append((number, {"mark": "not run", "title": title}))
    return entries


def _searches(study, phases):
    """(heading, drawing, trials to list by rank) of each search with trials that can be drawn."""
    steps = {step.get("step"): step for step in study.get("steps") or ()}
    searches = []
    for phase in ("lr", "coarse", "refine"):
        trials = [trial for trial in phases.get(phase, ()) if 0 < trial.lr < math.inf]
        if phase != "lr":
            trials = [trial for trial in trials if 0 <= trial.weight_decay < math.inf]
        ranks = []
        if not trials:
            continue
        if phase == "lr":
            drawing = plots.rate_search(
                trials,
                chosen=shown.number(((steps.get(3) or {}).get("chosen") or {}).get("lr")),
                untrained=shown.number(((steps.get(1) or {}).get("numbers") or {}).get("initial loss")),
            )
        elif phase == "coarse" and plots.is_grid(trials):
            drawing = plots.heat_map(trials)
        else:
            drawing, ranks = plots.scatter(trials), shown.ranked(trials)
        searches.append((_PHASES[phase], drawing, ranks))
    return searches


def _bold(trials, *, winner):
    """The id of the trial with the thick curve, or ""."""
    if winner in {trial.id for trial in trials}:
        return winner
    best = shown.ranked(trials)[0]
    return best.id if math.isfinite(best.last.val_accuracy) else ""


def _winner_figures(winner):
    written = {
        "learning rate": ("lr", shown.short),
        "weight decay": ("weight_decay", shown.short),
        "epochs": ("epochs", shown.short),
        "validation accuracy": ("val_accuracy", shown.percent),
        "validation loss": ("val_loss", shown.loss),
    }
    figures = [(name, write(winner[key])) for name, (key, write) in written.items() if key in winner]
    return figures + [(key, shown.fact(value)) for key, value in (winner.get("further") or {}).items()]


def _difference(line: str) -> tuple[str, str, str]:
    """The parts of "key: old -> new"."""
    key, _, change = line.partition(": ")
    old, _, new = change.partition(" -> ")
    return key, old, new


_ENVIRONMENT = jinja2.Environment(autoescape=True)
_ENVIRONMENT.filters |= {
    "count": shown.count,
    "dict": dict,
    "loss": shown.loss,
    "percent": shown.percent,
    "seconds": shown.seconds,
    "short": shown.short,
    "svg": plots.svg,
}
_PAGE = _ENVIRONMENT.from_string(TEMPLATE)
