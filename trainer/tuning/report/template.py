"""The text of `study.html`, for Jinja."""

STYLE = """\
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
  table { border-collapse: collapse; margin: 1rem 0; }
  th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
  .figure { text-align: right; font-variant-numeric: tabular-nums; }
  svg { max-width: 100%; height: auto; }
  code { overflow-wrap: anywhere; }
  pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
"""

TEMPLATE = """<!doctype html>
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
{% macro values(trial, rows=1) %}{% for key in further %}\
<td rowspan="{{ rows }}">{{ (trial.further | dict)[key] or "–" }}</td>{% endfor %}{% endmacro %}
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
    <th class="figure">weight decay</th>{% for key in further %}<th>{{ key }}</th>{% endfor %}
    <th class="figure">epochs</th><th class="figure">val accuracy</th><th class="figure">val loss</th>
    <th>state</th></tr>
  {% for trial in ranks %}<tr><td class="figure">{{ loop.index }}</td><td>{{ trial.id }}</td>\
<td class="figure">{{ trial.lr | short }}</td><td class="figure">{{ trial.weight_decay | short }}</td>\
{{ values(trial) }}\
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
  <thead><tr><th>trial</th><th class="figure">learning rate</th><th class="figure">weight decay</th>
    {% for key in further %}<th>{{ key }}</th>{% endfor %}
    <th>seed</th><th>schedule</th><th class="figure">steps</th><th class="figure">epochs</th>
    <th class="figure">train loss</th><th class="figure">val loss</th><th class="figure">val accuracy</th>
    <th class="figure">time (s)</th><th>state</th></tr></thead>
{% for trial in trials %}{% set tall = [trial.rungs | length, 1] | max %}
<tbody{% if winner and trial.id == winner.trial %} class="won"{% endif %}>
{% for rung in trial.rungs or [trial.last] %}<tr>
{% if loop.first %}<td rowspan="{{ tall }}">{{ trial.id }}</td>\
<td class="figure" rowspan="{{ tall }}">{{ trial.lr | short }}</td>\
<td class="figure" rowspan="{{ tall }}">{{ trial.weight_decay | short }}</td>\
{{ values(trial, tall) }}\
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
