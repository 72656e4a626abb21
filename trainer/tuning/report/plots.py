"""The plots of a study, in black and grey for plain printers. Their text is fixed: no names from the study.

Plots over rate or decay need finite values, the rate above 0 and the decay at least 0.
"""

import html
import io
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from linseed.trainer.tuning.report.shown import Trial, number, ranked

_WIDTH, _HEIGHT = 4.8, 3.1  # inches: two side by side on the page, one on a narrow screen
_HIGH = 2.0  # a loss above so many times the untrained loss is off the scale


class Drawing(NamedTuple):
    """A figure, its alternative text for screen readers, and its caption."""

    figure: Figure
    alt: str
    caption: str


def svg(figure, *, alt: str) -> str:
    """A matplotlib `figure` as an `<svg>` element, the same text each time.

    alt: the alternative text for screen readers.
    """
    drawn = io.StringIO()
    # With a fixed salt, ids are hashes of the content: on one page they clash only if the content is equal.
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def rate_search(trials: Sequence[Trial], *, chosen: float = math.nan, untrained: float = math.nan) -> Drawing:
    """Train loss over learning rate. chosen: the chosen rate. untrained: the loss before training. NaN: none."""
    trials = sorted(trials, key=lambda trial: trial.lr)
    steps = max((trial.last.steps for trial in trials if trial.rungs), default=math.nan)
    sound = [trial for trial in trials if trial.rungs and not trial.diverged]
    typical = untrained if math.isfinite(untrained) else statistics.median([t.last.train_loss for t in sound] or [1.0])
    low = [trial for trial in sound if trial.last.train_loss <= _HIGH * typical]
    high = [trial for trial in sound if trial not in low]
    diverged = [trial for trial in trials if trial.diverged]

    figure, axes = _panel()
    axes.margins(y=0.25)
    whole = [trial for trial in low if trial.last.steps == steps]
    short = [trial for trial in low if trial.last.steps != steps]
    axes.plot([t.lr for t in whole], [t.last.train_loss for t in whole], "ko-", label="to the end")
    axes.plot(
        [t.lr for t in short], [t.last.train_loss for t in short], "ko", markerfacecolor="white", label="fewer steps"
    )
    if math.isfinite(untrained):
        axes.axhline(untrained, color="0.5", linestyle="--", linewidth=1, label="untrained")
    # Losses beyond the axis are drawn at its top.
    top = axes.get_xaxis_transform()
    axes.plot([t.lr for t in high], [0.95] * len(high), "k^", transform=top, label="off the scale")
    axes.plot([t.lr for t in diverged], [0.95] * len(diverged), "kx", mew=2, ms=8, transform=top, label="diverged")
    if 0 < chosen < math.inf:
        axes.axvline(chosen, color="0.75", linewidth=6, zorder=0, label=f"chosen: {chosen:g}")
    if not low:
        axes.set_yticks([untrained] if math.isfinite(untrained) else [])
    _log_ticks(axes, "x", [trial.lr for trial in trials] + [chosen])
    after = f"train loss after {steps:,.0f} step{'s' * (steps != 1)}" if math.isfinite(steps) else "train loss"
    axes.set(xlabel="learning rate", ylabel=after)
    _legend_below(figure, axes)
    reached = {t: "diverged" if t.diverged else f"{t.last.train_loss:.3g}" if t.rungs else "under way" for t in trials}
    told = "; ".join(f"{trial.lr:g}: {became}" for trial, became in reached.items())
    alt = f"{after} by learning rate: {told}" + (f"; chosen {chosen:g}" if math.isfinite(chosen) else "")
    return Drawing(figure, alt, f"The {after} of short runs, one per learning rate, on all train images.")


def is_grid(trials: Sequence[Trial]) -> bool:
    """Whether at least half the cells of lr x decay hold a trial; random points fill few."""
    cells = {(trial.lr, trial.weight_decay) for trial in trials}
    rates, decays = ({cell[axis] for cell in cells} for axis in (0, 1))
    return 2 * len(cells) >= len(rates) * len(decays)


def heat_map(trials: Sequence[Trial]) -> Drawing:
    """Validation accuracy in each cell of lr x decay, the best cell framed."""
    rates, decays = (sorted({getattr(trial, key) for trial in trials}) for key in ("lr", "weight_decay"))
    cells = {
        (row, column): [trial for trial in trials if (trial.lr, trial.weight_decay) == (rate, decay)]
        for row, decay in enumerate(decays)
        for column, rate in enumerate(rates)
    }
    shown = {place: _cell(inside) for place, inside in cells.items()}
    accuracies = {place: accuracy for place, (accuracy, _, _) in shown.items() if math.isfinite(accuracy)}
    best = max(accuracies, key=accuracies.get, default=None)
    lowest, highest = (limit(accuracies.values(), default=0.0) for limit in (min, max))

    figure = Figure(figsize=(1.2 + 1.05 * len(rates), 0.8 + 0.62 * len(decays)), layout="constrained")
    axes = figure.subplots()
    for (row, column), (accuracy, text, hatch) in shown.items():
        share = (accuracy - lowest) / (highest - lowest) if highest > lowest else 0.0
        # Light enough for black text.
        face = "white" if math.isnan(accuracy) else str(0.97 - 0.37 * share)
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="0.8", hatch=hatch, linewidth=0.8))
        under = dict(facecolor=face, edgecolor="none", pad=1.5) if hatch else None
        axes.text(column, row, text, ha="center", va="center", fontsize=9 if hatch is None else 8, bbox=under)
    if best is not None:
        frame = dict(fill=False, edgecolor="black", linewidth=2.5, zorder=3)
        axes.add_patch(Rectangle((best[1] - 0.47, best[0] - 0.45), 0.94, 0.9, **frame))
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=9)
    axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=9)
    axes.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(decays) - 0.5))
    axes.set(xlabel="learning rate", ylabel="weight decay")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    told = "; ".join(
        f"lr {rates[column]:g}, decay {decays[row]:g}: {' '.join(text.split())}"
        for (row, column), (_, text, _) in shown.items()
    )
    caption = "Validation accuracy at the end: darker is better, the frame marks the best."
    if any(hatch for _, _, hatch in shown.values()):
        caption += " Trials in hatched cells did not finish."
    return Drawing(figure, f"Validation accuracy by learning rate and weight decay. {told}", caption)


def scatter(trials: Sequence[Trial]) -> Drawing:
    """Weight decay over learning rate, each trial with its rank in `ranked`."""
    places: dict[tuple[float, float], list[tuple[int, Trial]]] = {}
    for rank, trial in enumerate(ranked(trials), 1):
        places.setdefault((trial.lr, trial.weight_decay), []).append((rank, trial))
    decays = sorted({decay for _, decay in places})
    # A log axis has no zero: it is drawn a decade below the smallest positive decay.
    floor = min((decay for decay in decays if decay > 0), default=1.0) / 10
    figure, axes = _panel()
    for (lr, decay), inside in reversed(places.items()):
        (rank, best), *others = inside
        y = max(decay, floor)
        if best.state == "failed":
            axes.plot(lr, y, "kx", markersize=8, markeredgewidth=2)
        else:
            whole = best.state == "complete"
            face = ("black" if rank == 1 else "0.85") if whole else "white"
            ink = "white" if face == "black" else "black"
            # Circles hide what lies under them: the better trial is on top.
            look = dict(markersize=15, markerfacecolor=face, markeredgecolor="black" if whole else "0.55")
            axes.plot(lr, y, "o", zorder=3 - rank / 1000, **look)
            words = dict(fontsize=8, color=ink, zorder=3 - (rank - 0.5) / 1000)
            axes.annotate(str(rank), (lr, y), ha="center", va="center_baseline", **words)
        if others:
            also = "+ " + ", ".join(str(rank) for rank, _ in others)
            axes.annotate(also, (lr, y), (10, 0), textcoords="offset points", va="center", fontsize=7)
    _log_ticks(axes, "x", [lr for lr, _ in places])
    _log_ticks(axes, "y", decays, zero_at=floor)
    axes.set(xlabel="learning rate", ylabel="weight decay")
    told = "; ".join(
        f"{rank}: lr {lr:g}, decay {decay:g}" for (lr, decay), inside in places.items() for rank, _ in inside
    )
    caption = "The trials by their rank in the table. Black: the best; white: dropped or under way; cross: failed."
    return Drawing(figure, f"Weight decay over learning rate, by rank. {told}", caption)


def curves(trials: Sequence[Trial], *, records: dict[str, list[dict]], bold: str) -> list[Drawing]:
    """Train loss and validation accuracy over steps, one drawing each, where there are values.

    records: by trial id; a trial without records is drawn from its rungs. bold: the id of the thick line's trial.
    """
    drawings = []
    for field, name in (("train_loss", "train loss"), ("val_accuracy", "validation accuracy")):
        lines = {trial: _points(trial, records.get(trial.id), field) for trial in trials}
        lines = {trial: points for trial, points in lines.items() if len(points)}
        if lines:
            drawings.append(_curves(lines, name=name, bold=bold))
    return drawings


def _curves(lines, *, name, bold):
    figure, axes = _panel()
    rates = sorted({trial.lr for trial in lines if math.isfinite(trial.lr)})
    ceiling = _HIGH * statistics.median(points[0, 1] for points in lines.values())
    clipped = name == "train loss" and 0 < ceiling < max(points[:, 1].max() for points in lines.values())
    if clipped:
        lowest = min(points[:, 1].min() for points in lines.values())
        tame = [points[:, 1].max() for points in lines.values() if points[:, 1].max() <= ceiling]
        if max(tame, default=lowest) > lowest:
            ceiling = min(ceiling, 1.1 * max(tame))
        axes.set_ylim(lowest - 0.05 * (ceiling - lowest), ceiling)
    kinds = {"dropped": "--", "failed": ":"}
    for trial, points in lines.items():
        place = rates.index(trial.lr) / max(1, len(rates) - 1) if trial.lr in rates else 0.0
        look = dict(color=str(0.78 - 0.48 * place), linewidth=1.2, zorder=2)
        if trial.id == bold:
            look = dict(color="black", linewidth=2.6, zorder=4)
        sparse = "." if len(points) <= 12 else None
        axes.plot(*points.T, linestyle=kinds.get(trial.state, "-"), marker=sparse, **look)
        if trial.state == "failed":
            end = (points[-1, 0], min(points[-1, 1], ceiling) if clipped else points[-1, 1])
            axes.plot(*end, "kx", markersize=7, markeredgewidth=2, zorder=5, clip_on=False)
    if name == "validation accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set(xlabel="optimiser steps", ylabel=name)
    ends = [points[-1, 1] for points in lines.values()]
    written = ".1%" if name == "validation accuracy" else ".3g"
    alt = f"{name} over steps of {len(lines)} trials, which end between {min(ends):{written}} and {max(ends):{written}}"
    stands_out = [points[-1, 1] for trial, points in lines.items() if trial.id == bold]
    alt += f"; the thick line ends at {stands_out[0]:{written}}" if stands_out else ""
    caption = name[0].upper() + name[1:] + "." + (" Lines beyond the top have diverged." if clipped else "")
    return Drawing(figure, alt, caption)


def _points(trial, records, field):
    """The finite (step, value) pairs, float64 [n, 2]."""
    if any(field in record for record in records or ()):
        pairs = [(record["step"], number(record.get(field))) for record in records]
    else:
        pairs = [(rung.steps, getattr(rung, field)) for rung in trial.rungs]
    return np.array([pair for pair in pairs if np.isfinite(pair).all()], np.float64).reshape(-1, 2)


def _cell(trials):
    """(accuracy, text, hatch) of the trials in one cell. The accuracy is NaN unless one has finished."""
    states = [trial.state for trial in trials]
    whole = [trial.last.val_accuracy for trial in trials if trial.state == "complete"]
    whole = [accuracy for accuracy in whole if math.isfinite(accuracy)]
    if whole:
        runs = f"\nmean of {len(whole)}" if len(whole) > 1 else ""
        return statistics.fmean(whole), f"{100 * statistics.fmean(whole):.2f} %{runs}", None
    if "running" in states:
        return math.nan, "under way", ".."
    if "dropped" in states:
        last = ranked(trials)[0].last
        reached = f"{100 * last.val_accuracy:.2f} %\n" if math.isfinite(last.val_accuracy) else ""
        return math.nan, f"{reached}dropped", "//"
    if trials:
        return math.nan, "failed", "xx"
    return math.nan, "not run", None


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    return figure, axes


def _legend_below(figure, axes):
    handles = [line for line in axes.get_lines() if len(line.get_xdata())]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _log_ticks(axes, which, values, *, zero_at=math.nan):
    """Makes `which` ("x" or "y") a log axis with few, plain ticks around `values`; zero is drawn at `zero_at`."""
    positive = [value for value in values if 0 < value < math.inf]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    decades = [10.0**decade for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    ticks = sorted(digit * decade for digit in (1, 2, 5) for decade in decades)
    ticks = [tick for tick in ticks if 0.8 * low <= tick <= 1.25 * high]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if tick in decades][:: 1 + len(decades) // 8]
    ticks = (ticks or sorted({low, high})) if positive else []
    labels = [f"{tick:g}" for tick in ticks]
    if zero_at > 0 and 0.0 in values:
        ticks, labels = [zero_at, *ticks], ["0", *labels]
        low, high = zero_at, high if positive else zero_at
    # Set the limits first: on a log axis matplotlib warns when it widens a single point.
    margin = max(1.5, (high / low) ** 0.1)
    axes.set(**{f"{which}lim": (low / margin, high * margin)})
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, labels)
