"""What the page shows, gathered from the files of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import departures, resolve
from linseed.trainer.errors import LinseedError
from linseed.trainer.report import charts, classes, groups, headline, reliability
from linseed.trainer.report.predictions import Predictions
from linseed.trainer.run.figures import figures

MOST_IN_MATRIX = 20  # classes
MOST_PAIRS = 12
WORST_CLASSES = 20  # that stand on the page at once
MOST_CLASSES = 500  # with those that are folded in

_SOFTMAX = ("softmax", "weighted_softmax")


class Files(NamedTuple):
    """What the files of a run hold. Any of them may be missing or empty, but for the config."""

    config: ml_collections.ConfigDict
    result: Mapping[str, Any] | None  # None while the run goes on
    records: Sequence[Mapping[str, Any]]
    is_whole: bool  # whether no record is lost
    predictions: Mapping[str, Predictions]  # by split
    temperature: float
    examples: Mapping[str, Any]  # see `examples.examples`, with class_names
    card: Mapping[str, Any]  # of pre-trained weights


class SplitContent(NamedTuple):
    """What the page shows of the predictions on a split. worst, others: classes, by F1; left_out: the number of those
    that are on neither list. shown, matrix, pairs: of the confusion; part_of_matrix: whether classes are left out of
    it. eces, losses: before and after scaling, over the `scaled` images that had part in it."""

    name: str
    per_class: classes.PerClass
    worst: list[int]
    others: list[int]
    left_out: int
    shown: list[int]
    part_of_matrix: bool
    matrix: list[dict[str, Any]]
    pairs: list[classes.Pair]
    diagram: str
    eces: tuple[float, float]
    losses: tuple[float, float]
    scaled: int


def content(files: Files) -> dict[str, Any]:
    """What the page is rendered with."""
    config, result, records = files.config, files.result, files.records
    source = config.data.source
    scores = _scores(result, records)
    evaluated = [record for record in records if "val_accuracy" in record]
    best_step = result["best_step"] if result else 0
    names = files.examples.get("class_names") or _numbers(files.predictions)
    by_split = {name: split_content(name, found, len(names)) for name, found in files.predictions.items()}
    openings = result["test_openings"] if result else 0
    return {
        "title": f"{config.model.name} on {source.get('dataset', source.name)}",
        "subtitle": _subtitle(result, records),
        "finished": result is not None,
        "scores": list(reversed(scores)),
        "sentences": headline.sentences(*scores, openings=openings) if scores else (),
        "charts": list(_charts(records, best_step=best_step)),
        "has_majority": any("val_majority_share" in record for record in evaluated),
        "is_whole": files.is_whole,
        "names": names,
        "val": by_split.get("val"),
        "test": by_split.get("test"),
        "splits": [by_split[name] for name in ("val", "test") if name in by_split],
        "temperature": files.temperature,
        "loss_note": _loss_note(config.get("loss", {}).get("name", "softmax")),
        "mistakes": files.examples.get("mistakes") or (),
        "uncertain": files.examples.get("uncertain") or (),
        "kinds": groups.by_kind(files.predictions["val"]) if "val" in files.predictions else (),
        "figures": figures(result) if result else (),
        "monitor": f", by val {result['monitor'].replace('_', ' ')}" if result and "monitor" in result else "",
        "card": list(canonical.flatten(files.card)),
        "departures": _departures(config),
        "facts": _facts(result) if result else (),
        "config": canonical.to_json(config),
    }


def split_content(name: str, found: Predictions, num_classes: int) -> SplitContent:
    """What the page shows of the predictions `found` on the split `name`."""
    per = classes.per_class(found.label, found.answer, classes=num_classes)
    order = np.lexsort((np.arange(num_classes), -per.support, per.f1.value)).tolist()  # NaN last
    pairs = classes.pairs(found.label, found.answer, classes=num_classes)
    shown = classes.confused(pairs, classes=num_classes, most=MOST_IN_MATRIX)
    scaled = ~np.isnan(found.scaled_confidence)
    right = found.right[scaled]
    bins = [reliability.bins(some[scaled], right) for some in (found.confidence, found.scaled_confidence)]
    eces = tuple(map(reliability.error, bins))
    alt = f"accuracy by confidence on {name}: calibration error {eces[0]:.1%}, after scaling {eces[1]:.1%}"
    return SplitContent(
        name="validation" if name == "val" else name,
        per_class=per,
        worst=order[:WORST_CLASSES],
        others=order[WORST_CLASSES:MOST_CLASSES],
        left_out=max(0, num_classes - MOST_CLASSES),
        shown=shown,
        part_of_matrix=num_classes > len(shown),
        matrix=list(_rows(classes.matrix(found.label, found.answer, shown), shown, per.support)),
        pairs=pairs[:MOST_PAIRS],
        diagram=charts.reliability(*bins, alt=alt),
        eces=eces,
        losses=tuple(float(some[scaled].mean()) for some in (found.loss, found.scaled_loss)),
        scaled=int(scaled.sum()),
    )


def _rows(counts, shown, support):
    for row, label in enumerate(shown):
        cells = []
        for column, answer in enumerate(shown):
            count = int(counts[row, column])
            share = (count / max(1, int(support[label]))) ** (1 if row == column else 0.5)  # a rare mistake is seen too
            looks = ["right"] * (row == column) + ["none"] * (not count) + ["full"] * (share > 0.6)
            cells.append({"answer": answer, "count": count, "share": round(100 * share), "look": " ".join(looks)})
        yield {"label": label, "cells": cells}


def _numbers(predictions):
    """The names of classes that have none: their numbers."""
    largest = max((int(max(found.label.max(), found.answer.max())) for found in predictions.values()), default=-1)
    return [str(number) for number in range(largest + 1)]


def _scores(result, records):
    """[validation] or [validation, test]; of a run that goes on, the last validation."""
    if result:
        named = (("validation", result["val"]), ("test", result["test"]))
        return [headline.read_score(name, found) for name, found in named if found]
    for record in reversed(records):
        found = {key.removeprefix("val_"): value for key, value in record.items() if key.startswith("val_")}
        if {"accuracy", "examples", "loss"} <= found.keys():
            return [headline.read_score("validation", found)]
    return []


def _subtitle(result, records):
    if result is None:
        last = records[-1] if records else {}
        return (
            f"under way: step {last.get('step', 0):,}, epoch {last.get('epoch', 0.0):.2f}; the page loads itself anew"
        )
    sizes = f"{result['steps']:,} steps in {result.get('seconds', 0):,.0f} s"
    return f"best checkpoint: step {result['best_step']:,} of {sizes}; {result['stop_reason']}"


def _charts(records, *, best_step):
    """(name, svg) of loss, accuracy and learning rate over epochs."""
    best = {record["step"]: record for record in records}.get(best_step, {})
    for quantity, write in (("loss", "{:g}".format), ("accuracy", "{:.0%}".format)):
        lines = [_line(records, f"{look}_{quantity}", look) for look in ("train", "val")]
        if quantity == "accuracy":
            lines.append(_line(records, "val_majority_share", "even"))
        mark = best.get("epoch"), best.get(f"val_{quantity}")
        chart = charts.line_chart(
            lines,
            alt=f"{quantity} over epochs{_ends(lines)}",
            x_name="epoch",
            write=write,
            mark=mark if all(map(_is_number, mark)) else None,
        )
        yield ("loss (nats)" if quantity == "loss" else quantity), chart
    rate = _line(records, "lr", "val")
    alt = "learning rate over epochs"
    yield "learning rate", charts.line_chart([rate], alt=alt, x_name="epoch", write="{:.3g}".format, from_zero=True)


def _line(records, key, look):
    """The records that hold epoch and `key` as finite numbers."""
    pairs = [(record.get("epoch"), record.get(key)) for record in records]
    pairs = [pair for pair in pairs if all(map(_is_number, pair))]
    return charts.Line(key.replace("_", " "), look, [x for x, _ in pairs], [y for _, y in pairs])


def _is_number(value):
    return isinstance(value, int | float) and np.isfinite(value)


def _ends(lines):
    return "".join(f"; {line.name} ends at {line.ys[-1]:.3g}" for line in lines if len(line.ys))


def _loss_note(loss):
    if loss in _SOFTMAX:
        return ""
    return f"The run trained with the loss '{loss}'; confidence here is the softmax of its outputs."


def _departures(config):
    try:
        return departures(resolve(config))
    except LinseedError:  # of an earlier version, or of a plugin that is not loaded
        return []


def _facts(result):
    speed = result.get("images_per_second")
    openings = result["test_openings"]
    facts = {
        "stopped": result["stop_reason"],
        "steps": f"{result['steps']:,}",
        "time": f"{result['seconds']:,.0f} s" if "seconds" in result else "",
        "speed": f"{speed:,.0f} images/s" if speed else "not measured: the run had only one log window",
        "devices": ", ".join(result.get("devices", ())),
        "test set opened": f"{openings} time{'s' if openings != 1 else ''}",
        "commit of the code": result.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
        "parameters (sha256)": result.get("params_sha256"),
        "best parameters (sha256)": result.get("best_params_sha256"),
        "config (sha256)": result.get("config_sha256"),
    }
    return [(name, value) for name, value in facts.items() if value]
