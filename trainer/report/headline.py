"""The result of a run in a few words: how many are right, how sure that is, and how validation and test differ."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from linseed.trainer.step.scores import wilson


class Score(NamedTuple):
    """The accuracy of a split, with its 95 % interval; the other scores as in `scores.scores`, None in old runs."""

    split: str
    examples: int
    accuracy: float
    low: float
    high: float
    majority: float | None
    balanced: float | None
    balanced_interval: tuple[float, float] | None
    loss: float


def read_score(split: str, figures: Mapping[str, Any]) -> Score:
    """The score of a split: of a section of `result.json`, perhaps of an earlier version, or of a record."""
    examples = int(figures["examples"])
    low, high = figures.get("accuracy_interval") or wilson(round(figures["accuracy"] * examples), examples)
    return Score(
        split=split,
        examples=examples,
        accuracy=figures["accuracy"],
        low=float(low),
        high=float(high),
        majority=figures.get("majority_share"),
        balanced=figures.get("balanced_accuracy"),
        balanced_interval=figures.get("balanced_accuracy_interval"),
        loss=float(figures["loss"]),
    )


def difference(first: Score, second: Score) -> tuple[float, float, float]:
    """The accuracy of `first` less that of `second`, of other examples, and its 95 % interval (low, high).

    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    gap = first.accuracy - second.accuracy
    low = gap - math.hypot(first.accuracy - first.low, second.high - second.accuracy)
    high = gap + math.hypot(first.high - first.accuracy, second.accuracy - second.low)
    return gap, low, high


def sentences(val: Score, test: Score | None = None, *, openings: int) -> list[str]:
    """What the scores say: against always answering the largest class, and validation against test."""
    main = test or val
    said = []
    if main.majority is not None:
        if main.low > main.majority:
            than = f"{_points(main.accuracy - main.majority)} above"
        else:
            than = "not surely better than"
        said.append(
            f"That is {than} always answering the most frequent class, which is right for {percent(main.majority)}."
        )
    if test is None:
        return [
            *said,
            "The test images are sealed. Validation chooses the checkpoint, so its figure flatters a little.",
        ]
    gap, low, high = difference(val, test)
    way = "higher" if gap > 0 else "lower"
    far = f"Validation is {_points(abs(gap))} {way} than test" if round(gap, 3) else "Validation is as high as test"
    limits = f"{100 * low:+.1f} to {100 * high:+.1f} points".replace("-", "−")
    far += f" (95 % interval of the difference: {limits})"
    if low <= 0 <= high:
        said.append(f"{far}, which chance alone can explain.")
    else:
        cause = "validation chose the checkpoint, or test is harder" if gap > 0 else "the test images are easier"
        said.append(f"{far}. That is more than chance explains: {cause}.")
    if openings > 1:
        said.append(f"Test was opened {openings} times: the more often, the more its figure flatters.")
    return said


def percent(share: float) -> str:
    """A share as text, "97.2 %"."""
    return f"{100 * share:.1f} %".replace("100.0 %", "100 %")


def _points(share):
    return f"{100 * share:.1f} points"
