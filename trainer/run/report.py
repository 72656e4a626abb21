"""`report.html`: one self-contained page per run, made only from the files in its workdir."""

import html
import io
import json
from pathlib import Path

import jinja2

from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.figures import figures
from linseed.trainer.run.metrics_log import read_records

STYLE = """\
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
  table { border-collapse: collapse; margin: 1rem 0; }
  th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
  .figure { text-align: right; font-variant-numeric: tabular-nums; }
  svg { max-width: 100%; height: auto; }
  code { overflow-wrap: anywhere; }
  pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
"""

_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ style | safe }}</style>
<h1>{{ title }}</h1>
<table>
  <tr><th>best checkpoint (step {{ result.best_step }}, by val {{ monitor }})</th>
    {% for split in figures[0][1:] %}<th class="figure">{{ split }}</th>{% endfor %}</tr>
  {% for row in figures[1:] %}
  <tr><td>{{ row[0] }}</td>{% for text in row[1:] %}<td class="figure">{{ text }}</td>{% endfor %}</tr>
  {% endfor %}
</table>
<p>Balanced accuracy is the mean over classes of the share of their images that is right. The majority class is the
  share of the most frequent class, which is the accuracy of always answering it. The intervals say how much other
  images of the same kind would change a figure: Wilson's, and for balanced accuracy those of each class, added in
  quadrature (Zou and Donner 2008).</p>
{{ curves | safe }}
<p>Train figures are means over the training batches since the last point, with augmentation, dropout and label
  smoothing. Validation figures are over all validation images at that step, without these.</p>
<table>
  {% for name, value in facts %}<tr><td>{{ name }}</td><td><code>{{ value }}</code></td></tr>
  {% endfor %}
</table>
<details><summary>config</summary><pre>{{ config }}</pre></details>
</html>
""")


def draw_curves(records: list[dict], *, best_step: int):
    """Loss, accuracy and learning rate over epochs; train solid, validation dashed, the best checkpoint marked.

    A matplotlib Figure. matplotlib is imported only to draw: no run waits for it before its first step.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    judged = [record for record in records if "val_accuracy" in record]
    judged_epochs = [record["epoch"] for record in judged]
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, [record[f"train_{quantity}"] for record in records], color="0.6", label="train batches")
        axes.plot(judged_epochs, [r[f"val_{quantity}"] for r in judged], "k--", label="validation")
        axes.set(xlabel="epoch", title=f"{quantity} (nats)" if quantity == "loss" else quantity)
    majority = [record["val_majority_share"] for record in judged if "val_majority_share" in record][-1:]
    for share in majority:
        accuracy.axhline(share, color="0.6", linestyle=":", label="majority class")
    best = [record for record in judged if record["step"] == best_step]
    accuracy.plot(
        [record["epoch"] for record in best], [record["val_accuracy"] for record in best], "ko", label="best checkpoint"
    )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    loss.legend()
    accuracy.legend(loc="lower right")
    rate.plot(epochs, [record["lr"] for record in records], "k")
    rate.set(xlabel="epoch", title="learning rate", ylim=(0, None))
    for axes in (loss, accuracy, rate):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
    return figure


def svg(figure, *, alt: str) -> str:
    """A matplotlib `figure` as an `<svg>` element, the same text each time.

    alt: the alternative text for screen readers.
    """
    import matplotlib

    drawn = io.StringIO()
    # With a fixed salt, ids are hashes of the content: on one page they clash only if the content is equal.
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def write(workdir: Path):
    """Writes `report.html` of a finished run."""
    result = workdir_lib.read_result(workdir)
    records = read_records(workdir / workdir_lib.METRICS)
    config = (workdir / workdir_lib.CONFIG).read_text()
    curves = draw_curves(records, best_step=result["best_step"])
    speed = result["images_per_second"]
    facts = [
        ("stopped", result["stop_reason"]),
        ("steps", f"{result['steps']:,}"),
        ("time", f"{result['seconds']:,.0f} s"),
        ("speed", f"{speed:,.0f} images/s" if speed else "not measured: the run had only one log window"),
        ("devices", ", ".join(result["devices"])),
        ("test set opened", f"{result['test_openings']} time{'s' if result['test_openings'] != 1 else ''}"),
        ("parameters (sha256)", result["params_sha256"]),
        ("best parameters (sha256)", result["best_params_sha256"]),
        ("config (sha256)", result["config_sha256"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]
    model, source = (json.loads(config)[key] for key in ("model", "data"))
    page = _PAGE.render(
        title=f"{model['name']} on {source['source'].get('dataset', source['source']['name'])}",
        style=STYLE,
        result=result,
        figures=figures(result),
        monitor=result.get("monitor", "accuracy").replace("_", " "),
        curves=svg(curves, alt="Loss, accuracy and learning rate over epochs"),
        facts=facts,
        config=config,
    )
    workdir_lib.write_whole(workdir / workdir_lib.REPORT, page)
