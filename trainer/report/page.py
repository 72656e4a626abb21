"""The page as HTML, from the content that `content.content` gathers. All text from elsewhere is escaped."""

from typing import Any

import jinja2

from linseed.trainer.report.headline import percent
from linseed.trainer.report.style import STYLE

_PARTS = """
{% macro share(measure, i) %}{% if measure.value[i] == measure.value[i] %}{{ measure.value[i] | percent }}\
<small>{{ measure.low[i] | whole }} to {{ measure.high[i] | whole }}</small>{% else %}–{% endif %}{% endmacro %}

{% macro ranks(per, places, names) %}<div class="wide"><table>
<thead><tr><th>class</th><th class="number">images</th><th class="number">precision</th><th class="number">recall</th>\
<th class="number">F1</th><th class="spare quiet">F1, 0 to 100 %</th></tr></thead><tbody>
{% for i in places %}<tr><td class="name">{{ names[i] }}</td><td class="number">{{ "{:,}".format(per.support[i]) \
}}</td>\
<td class="number">{{ share(per.precision, i) }}</td><td class="number">{{ share(per.recall, i) }}</td>\
<td class="number">{{ share(per.f1, i) }}</td><td class="spare">{% if per.f1.value[i] == per.f1.value[i] %}<span \
class="interval" \
style="--low: {{ per.f1.low[i] | css }}; --high: {{ per.f1.high[i] | css }}; --at: {{ per.f1.value[i] | css }}\
"></span>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>{% endmacro %}

{% macro classes(split, names) %}
{{ ranks(split.per_class, split.worst, names) }}
{% if split.others %}<details><summary>the {{ "{:,}".format(split.others | length) }} other classes\
{% if split.left_out %} ({{ "{:,}".format(split.left_out) }} better ones are left out){% endif %}</summary>
{{ ranks(split.per_class, split.others, names) }}</details>{% endif %}
{% endmacro %}

{% macro confusion(split, names) %}
{% if split.pairs %}
<div class="beside"><div class="wide"><table class="matrix">
<caption>Rows: the label. Columns: the answer. The fuller the colour, the larger its share of the row: blue is right, \
orange \
wrong.</caption>
<tr><td class="none"></td>{% for i in split.shown %}<th scope="col"><span>{{ names[i] }}</span></th>{% endfor %}</tr>
{% for row in split.matrix %}<tr><th scope="row" title="{{ names[row.label] }}">{{ names[row.label] }}</th>\
{% for cell in row.cells %}<td class="{{ cell.look }}" style="--share: {{ cell.share }}%" \
title="{{ names[row.label] }} answered {{ names[cell.answer] }}: {{ cell.count }}">{{ cell.count }}</td>{% endfor \
%}</tr>
{% endfor %}</table></div>
<div class="wide"><table><caption>The pairs confused most</caption>
<thead><tr><th>label</th><th>answer</th><th class="number">images</th><th class="number">of the label's</th></tr>\
</thead>
{% for pair in split.pairs %}<tr><td class="name">{{ names[pair.label] }}</td><td class="name">{{ names[pair.answer] \
}}</td>\
<td class="number">{{ "{:,}".format(pair.count) }}</td>\
<td class="number">{{ (pair.count / pair.support) | percent }}</td></tr>{% endfor %}
</table></div></div>
{% else %}<p>No image is answered wrongly.</p>{% endif %}
{% endmacro %}

{% macro gallery(list, names, pairs) %}<div class="gallery{{ " pairs" if pairs }}">
{% for each in list %}<figure><div class="pictures"><img src="{{ each.picture }}" alt="{{ names[each.label] }}, \
answered \
{{ names[each.answer] }}" loading="lazy">{% if each.where %}<img src="{{ each.where }}" alt="where the network looked" \
loading="lazy">{% endif %}</div><figcaption>\
{% if pairs %}<b>{{ names[each.label] }}</b>, answered <b>{{ names[each.answer] }}</b> ({{ each.confidence | percent \
}}); \
loss {{ "%.2f" | format(each.loss) }}{% else %}<b>{{ names[each.answer] }}</b> {{ each.confidence | percent }}, \
<b>{{ names[each.second] }}</b> {{ each.second_confidence | percent }}; label {{ names[each.label] }}{% endif %}
{% if each.name %}<br>{{ each.name }}{% endif %}</figcaption></figure>
{% endfor %}</div>{% endmacro %}
"""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if not finished %}<meta http-equiv="refresh" content="30">{% endif %}
<title>{{ title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">{{ subtitle }}</p>
<div class="scores">
{% for score in scores %}<div class="score{{ " first" if loop.first }}">{{ score.split }} accuracy\
<b>{{ score.accuracy | percent }}</b><small>95 % interval {{ score.low | percent }} to {{ score.high | percent }}, \
{{ "{:,}".format(score.examples) }} images</small></div>
{% endfor %}</div>
{% for sentence in sentences %}<p>{{ sentence }}</p>
{% endfor %}
{% if charts %}<h2>Curves</h2>
<div class="charts">{% for name, chart in charts %}<figure><figcaption>{{ name }}</figcaption>{{ chart | safe }}\
</figure>
{% endfor %}</div>
<p class="quiet"><span class="key"></span> validation, all images without augmentation \
<span class="key train"></span> train, the mean of the batches since the last point, with augmentation, dropout and \
label \
smoothing {% if has_majority %}<span class="key even"></span> always the most frequent class {% endif %}● the best \
checkpoint</p>
{% endif %}
{% if not is_whole %}<p class="warning">metrics.jsonl is damaged: the curves lack some records.</p>{% endif %}
"""

_BODY = """
{% if val %}
<h2>Classes</h2>
<p>On validation, the class of the lowest F1 first. Precision is the share of a class's answers that are right, \
recall the \
share of its images that are found, F1 their harmonic mean; below each its 95 % interval, in percent.</p>
{{ classes(val, names) }}

<h2>Confusion</h2>
{% if val.part_of_matrix %}<p>The {{ val.shown | length }} classes of the pairs confused most, out of \
{{ "{:,}".format(names | length) }}.</p>{% endif %}
{{ confusion(val, names) }}

{% if mistakes %}<h2>The worst mistakes</h2>
<p>The validation images with the highest loss{% if mistakes[0].where %}, and what the answer given hangs on. Bright: \
pixels \
whose change would change its probability most (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825; each map is scaled \
by its \
own maximum){% endif %}. A confident mistake is often a wrong label.</p>
{{ gallery(mistakes, names, true) }}{% endif %}
{% if uncertain %}<h2>The least certain</h2>
<p>The validation images whose answer has the lowest confidence, right or wrong. More images like these would teach \
the network most.</p>
{{ gallery(uncertain, names, false) }}{% endif %}

<h2>Calibration</h2>
<p>A calibrated network is right on 90 % of the images that it is 90 % confident in. Temperature scaling divides the \
network's \
outputs by one number, T = {{ "%.3f" | format(temperature) }}, fitted on the loss of the validation images: their \
figures \
after it are flattered{% if test %}, those of test are not{% endif %}. It changes no answer. {{ loss_note }}</p>
<div class="charts">{% for split in splits %}<figure>\
<figcaption>{{ split.name }}: accuracy by confidence</figcaption>{{ split.diagram | safe }}</figure>{% endfor %}</div>
<p class="quiet"><span class="key train"></span> as it is (hollow) <span class="key"></span> after scaling (full), \
each with \
the 95 % interval of its accuracy <span class="key even"></span> perfect</p>
<div class="wide"><table><thead><tr><th></th><th class="number">ECE</th><th class="number">after</th>\
<th class="number">loss (nats)</th><th class="number">after</th><th class="number">images</th></tr></thead>
{% for split in splits %}<tr><td>{{ split.name }}</td>{% for value in split.eces %}<td class="number">{{ value | \
percent }}</td>\
{% endfor %}{% for value in split.losses %}<td class="number">{{ "%.4f" | format(value) }}</td>{% endfor %}\
<td class="number">{{ "{:,}".format(split.scaled) }}</td></tr>{% endfor %}</table></div>
<p class="quiet">ECE, the expected calibration error: the mean distance of confidence and accuracy over bins of \
equally many \
images (Nguyen and O'Connor 2015). Temperature scaling: Guo et al. 2017, arXiv:1706.04599.</p>

{% if kinds %}<h2>Kinds of images</h2>
<p>Accuracy on validation. Where two intervals hardly overlap, the kind matters.</p>
{% for name, groups in kinds %}<div class="wide"><table><thead><tr><th>{{ name }}</th><th class="number">images</th>\
<th class="number">accuracy</th><th class="number">95 % interval</th></tr></thead>
{% for group in groups %}<tr><td>{{ group.name }}</td><td class="number">{{ "{:,}".format(group.examples) }}</td>\
<td class="number">{{ group.accuracy | percent }}</td>\
<td class="number">{{ group.low | percent }} to {{ group.high | percent }}</td></tr>{% endfor %}</table></div>{% \
endfor %}{% endif %}

{% if test %}<h2>Test, by class</h2>
<details><summary>what the one opening of test kept: classes and confusion</summary>
{{ classes(test, names) }}
{{ confusion(test, names) }}</details>{% endif %}
{% elif finished %}<p class="quiet">This run kept no predictions of single images: it is of an earlier version, or \
they could \
not be written.</p>{% endif %}
"""

_TAIL = """
<h2>What ran</h2>
{% if figures %}<details open><summary>scores of the best checkpoint{{ monitor }}</summary><div class="wide"><table>
<thead><tr><th></th>{% for split in figures[0][1:] %}<th class="number">{{ split }}</th>{% endfor %}</tr></thead>
{% for row in figures[1:] %}<tr><td>{{ row[0] }}</td>{% for text in row[1:] %}<td class="number">{{ text }}</td>\
{% endfor %}</tr>{% endfor %}</table></div>
<p class="quiet">Balanced accuracy is the mean over classes of the share of their images that is right. The intervals \
say how far \
other images of the same kind could move a figure: Wilson's, and for balanced accuracy those of each class, added in \
quadrature (Zou and Donner 2008).</p></details>{% endif %}
{% if card %}<details><summary>pre-trained weights that it started from</summary><table>
{% for name, value in card %}<tr><td>{{ name }}</td><td class="name"><code>{{ value }}</code></td></tr>{% endfor \
%}</table>
</details>{% endif %}
{% if departures %}<details><summary>settings that are not the defaults ({{ departures | length }})</summary>
<div class="wide"><table><thead><tr><th>key</th><th>value</th><th>default</th></tr></thead>
{% for key, value, default in departures %}<tr><td><code>{{ key }}</code></td><td class="name"><code>{{ value \
}}</code></td>\
<td class="name"><code>{{ default }}</code></td></tr>{% endfor %}</table></div></details>{% endif %}
{% if facts %}<details><summary>time, devices, versions, hashes</summary><table>
{% for name, value in facts %}<tr><td>{{ name }}</td><td class="name"><code>{{ value }}</code></td></tr>{% endfor \
%}</table>
</details>{% endif %}
<details><summary>the whole config</summary><pre>{{ config }}</pre></details>
</body>
</html>
"""


_ENVIRONMENT = jinja2.Environment(autoescape=True, trim_blocks=True)
_ENVIRONMENT.filters |= {"percent": percent, "css": "{:.1%}".format, "whole": lambda share: f"{100 * share:.0f}"}
_PAGE = _ENVIRONMENT.from_string(_PARTS + _HEAD + _BODY + _TAIL)


def render(content: dict[str, Any]) -> str:
    """The page with `content`, see `content.content`."""
    return _PAGE.render(content, style=STYLE).strip() + "\n"
