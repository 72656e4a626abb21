"""`study.html`: one self-contained page per study, made only from `study.json` and the records of its trials."""

import json
import math
from pathlib import Path

import jinja2

from linseed.trainer import files
from linseed.trainer.tuning.diagnosis.findings import CAUSES
from linseed.trainer.tuning.report import plots, shown

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

_STYLE = """\
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
  table { border-collapse: collapse; margin: 1rem 0; }
  th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
  .figure { text-align: right; font-variant-numeric: tabular-nums; }
  svg { max-width: 100%; height: auto; }
  code { overflow-wrap: anywhere; }
  pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}
  h2 { border-bottom: 1px solid #ddd; margin-top: 2.5rem; }
  h1, h3, p, li, td:last-child { overflow-wrap: anywhere; }
  .verdict { font-size: 1.15rem; border-left: 4px solid #1a1a1a; padding-left: 1rem; }
  .steps { list-style: none; padding: 0; }
  .steps > li { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); margin: .9rem 0; }
  .steps p, .steps ul { margin: .2rem 0; }
  .steps ul { padding-left: 1.2rem; }
  .mark { font-size: .85rem; line-height: 1.75rem; }
  .alarm > .mark, .alarm strong { font-weight: 700; }
  .absent, .small { color: #595959; }
  .small { font-size: .9rem; }
  .figures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; }
  figure { margin: 0; min-width: 0; }
  figcaption { font-size: .9rem; max-width: 29rem; }
  .wide { overflow-x: auto; }
  .trials { font-size: .85rem; line-height: 1.35; }
  .trials th, .trials td { padding-right: .9rem; }
  .trials td { white-space: nowrap; }
  .trials td.words { white-space: normal; min-width: 9rem; overflow-wrap: normal; }
  .trials .won td { font-weight: 700; }
  tr, figure, .steps > li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  @media (max-width: 40rem) { .steps > li { grid-template-columns: minmax(0, 1fr); } th, td { padding-right: .7rem; } }
  @media print {
    body { max-width: none; margin: 0; font-size: 11pt; }
    .figures { flex-wrap: nowrap; }
    .wide { overflow: visible; }
    pre { white-space: pre-wrap; }
    .trials { font-size: 7.5pt; }
    .trials th, .trials td { padding-right: .4rem; }
  }
</style>
{% macro pictures(drawings) %}<div class="figures">
{% for drawing in drawings %}<figure>{{ drawing.figure | svg(alt=drawing.alt) | safe }}
<figcaption>{{ drawing.caption }}</figcaption></figure>
{% endfor %}</div>{% endmacro %}
<h1>{{ title }}</h1>
<p class="verdict">{{ study.verdict or "No verdict yet" ~ (": the study is under way" if not study.stopped) ~ "." }}</p>
<table>
  {% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
  {% endfor %}
</table>

<h2>The seven steps</h2>
<ol class="steps">
{% for number, step in steps %}
<li class="{{ step.mark }}"><span class="mark">{{ marks[step.mark] }}</span>
<div><strong>{{ number }}. {{ step.title }}</strong>
  {% if step.summary %}<p>{{ step.summary }}</p>{% endif %}
  {% if step.figures %}<p class="small">{% for name, value in step.figures %}{{ name }} {{ value }}\
{{ "; " if not loop.last }}{% endfor %}</p>{% endif %}
  {% if step.findings %}<ul>
  {% for finding in step.findings %}<li><strong>{{ causes.get(finding.cause, finding.cause) }}</strong>: \
{{ finding.evidence }}<br>Next: {{ finding.remedy }}</li>
  {% endfor %}</ul>{% endif %}
</div></li>
{% endfor %}
</ol>

{% for heading, drawing, ranks in searches %}
<h2>{{ heading }}</h2>
{{ pictures([drawing]) }}
{% if ranks %}<div class="wide"><table class="trials">
  <tr><th class="figure">rank</th><th>trial</th><th class="figure">learning rate</th>
    <th class="figure">weight decay</th><th class="figure">epochs</th><th class="figure">val accuracy</th>
    <th class="figure">val loss</th><th>state</th></tr>
  {% for trial in ranks %}<tr><td class="figure">{{ loop.index }}</td><td>{{ trial.id }}</td>\
<td class="figure">{{ trial.lr | short }}</td><td class="figure">{{ trial.weight_decay | short }}</td>\
<td class="figure">{{ trial.last.epochs | short }}</td><td class="figure">{{ trial.last.val_accuracy | percent }}</td>\
<td class="figure">{{ trial.last.val_loss | loss }}</td><td>{{ trial.state }}</td></tr>
  {% endfor %}</table></div>{% endif %}
{% endfor %}

{% if phases %}<h2>Curves</h2>
<p>The thick black line is {{ "the winner, or " if winner }}the best trial of its phase. Darker lines have a higher
learning rate. Dashed trials were dropped; dotted ones failed, at the cross.</p>
{% for heading, drawings in phases %}<h3>{{ heading }}</h3>
{{ pictures(drawings) }}
{% endfor %}{% endif %}

{% if winner %}<h2>The winning config</h2>
<p>Trial {{ winner.trial }}{% if winner.config_file %}, written as <code>{{ winner.config_file }}</code>{% endif %}.</p>
<table>
  {% for name, value in winner_figures %}<tr><td>{{ name }}</td><td class="figure">{{ value }}</td></tr>
  {% endfor %}
</table>
{% if differences %}<div class="wide"><table>
  <tr><th>setting</th><th>given</th><th>winner</th></tr>
  {% for key, old, new in differences %}<tr><td><code>{{ key }}</code></td><td><code>{{ old }}</code></td>\
<td><code>{{ new }}</code></td></tr>
  {% endfor %}
</table></div>
{% else %}<p>It is the given config.</p>{% endif %}{% endif %}

{% if study.next %}<h2>What to try next</h2>
<ul>
{% for line in study.next %}<li>{% if line is string and line.startswith("linseed ") %}<pre>{{ line }}</pre>\
{% else %}{{ line }}{% endif %}</li>
{% endfor %}
</ul>{% endif %}

{% if trials %}<h2>All trials</h2>
<div class="wide" role="region" tabindex="0" aria-label="all trials"><table class="trials">
  <thead><tr><th>trial</th><th class="figure">learning rate</th><th class="figure">weight decay</th><th>seed</th>
    <th>schedule</th><th class="figure">steps</th><th class="figure">epochs</th><th class="figure">train loss</th>
    <th class="figure">val loss</th><th class="figure">val accuracy</th><th class="figure">time (s)</th>
    <th>state</th></tr></thead>
{% for trial in trials %}{% set tall = [trial.rungs | length, 1] | max %}
<tbody{% if winner and trial.id == winner.trial %} class="won"{% endif %}>
{% for rung in trial.rungs or [trial.last] %}<tr>
{% if loop.first %}<td rowspan="{{ tall }}">{{ trial.id }}</td>\
<td class="figure" rowspan="{{ tall }}">{{ trial.lr | short }}</td>\
<td class="figure" rowspan="{{ tall }}">{{ trial.weight_decay | short }}</td>\
<td rowspan="{{ tall }}">{{ trial.seed }}</td><td rowspan="{{ tall }}">{{ trial.schedule }}</td>{% endif %}
<td class="figure">{{ rung.steps | count }}</td><td class="figure">{{ rung.epochs | short }}</td>\
<td class="figure">{{ rung.train_loss | loss }}</td><td class="figure">{{ rung.val_loss | loss }}</td>\
<td class="figure">{{ rung.val_accuracy | percent }}</td>
{% if loop.first %}<td class="figure" rowspan="{{ tall }}">{{ trial.seconds | seconds }}</td>\
<td class="words" rowspan="{{ tall }}">{{ trial.state }}{{ ": " ~ trial.reason if trial.reason }}</td>{% endif %}
</tr>{% endfor %}
</tbody>
{% endfor %}</table></div>{% endif %}

{% if config %}<details><summary>the given config</summary><pre>{{ config }}</pre></details>{% endif %}
</html>
"""


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
        "style": _STYLE,
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
    return [(name, write(winner[key])) for name, (key, write) in written.items() if key in winner]


def _difference(line: str) -> tuple[str, str, str]:
    """The parts of "key: old -> new"."""
    key, _, change = line.partition(": ")
    old, _, new = change.partition(" -> ")
    return key, old, new


_ENVIRONMENT = jinja2.Environment(autoescape=True)
_ENVIRONMENT.filters |= {
    "count": shown.count,
    "loss": shown.loss,
    "percent": shown.percent,
    "seconds": shown.seconds,
    "short": shown.short,
    "svg": plots.svg,
}
_PAGE = _ENVIRONMENT.from_string(_TEMPLATE)
