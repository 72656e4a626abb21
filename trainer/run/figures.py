"""The scores of a run as text, for the console and the report."""

import math
from typing import Any


def figures(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The scores in `result` as text, a row each: its name, then val and, once it was opened, test.

    The first row has the names of the splits. What an earlier version did not measure is a dash.
    """
    splits = [split for split in ("val", "test") if result[split]]
    rows = [("best checkpoint", *splits)]
    for name, key, text in _FIGURES:
        rows.append((name, *(text(result[split][key]) if key in result[split] else "–" for split in splits)))
    return rows


def _percent(share):
    return f"{100 * share:.2f} %"


def _interval(limits):
    return f"{100 * limits[0]:.2f} to {_percent(limits[1])}"


def _loss(loss):
    return f"{loss:.4f}" if math.isfinite(loss) else str(loss)


_FIGURES = (
    ("accuracy", "accuracy", _percent),
    ("  95 % interval", "accuracy_interval", _interval),
    ("balanced accuracy", "balanced_accuracy", _percent),
    ("  95 % interval", "balanced_accuracy_interval", _interval),
    ("majority class", "majority_share", _percent),
    ("loss", "loss", _loss),
    ("examples", "examples", "{:,}".format),
)
