"""The measured curve: the records of a run as arrays, and the quantities that `signs_*.py` interpret.

There are two clocks: steps, and the learning rate summed over steps (`Curve.clock`). Any loss flattens when the rate
decays to 0. Only on the second clock does a flat loss say something about the network.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from linseed.trainer.optim import rules, schedules
from linseed.trainer.tuning.diagnosis import floors

SIGMAS = 3.0  # of a binomial or a window's noise; a run faces some twenty tests, and at 3 one in 700 errs
POINTS = 0.05  # accuracies within five points count as equal, whatever their standard errors
AT_CHANCE = 0.97  # of the loss at chance. A network that learns anything in an epoch goes below it
LEARNT = 0.1  # of the loss at chance, above the floor: below it train is learnt, and the loss cannot fall much
HARDLY_MOVED = 0.1  # of the norm of the weights; runs of this framework that learn move 0.3 to 25 times it
STANDS_STILL = 0.97  # of the loss a third of the run earlier; a power law of exponent 0.1 falls below it


class Accuracy(NamedTuple):
    """right: the correct share of so many `examples`."""

    right: float
    examples: float

    @property
    def error(self) -> float:
        """The standard error sqrt(p (1 - p) / n), with p kept off 0 and 1 (Agresti and Coull 1998)."""
        p = (self.right * self.examples + 2) / (self.examples + 4)
        return math.sqrt(p * (1 - p) / (self.examples + 4))

    def beats_chance(self, *, classes: int) -> bool:
        """Whether guessing is unlikely to be right so often.

        A guess may use the class frequencies, which differ by about a tenth in benchmark data.
        """
        chance = 1.1 / classes
        return self.right > chance + SIGMAS * Accuracy(chance, self.examples).error


class CleanPass(NamedTuple):
    """Accuracies of a run's checkpoints in evaluation mode, without augmentation, mixing and dropout.

    best: the checkpoint that is best on validation; latest: the newest one. train: on a sample of the train images;
    unseen: on train images that config.data.train_examples leaves out, None if there are none.
    """

    best_train: Accuracy
    best_val: Accuracy
    best_unseen: Accuracy | None
    latest_train: Accuracy
    latest_val: Accuracy
    latest_unseen: Accuracy | None


class Curve(NamedTuple):
    """The records of a run as arrays [R], in order of step; V of them hold an evaluation on validation.

    Loss, accuracy and update ratio (update over weights) are means over the log window that ends at `step`.
    """

    step: np.ndarray
    epoch: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    rate: np.ndarray
    grad_norm: np.ndarray
    update_ratio: np.ndarray
    val_index: np.ndarray  # [V] their records' indices
    val_loss: np.ndarray  # [V]
    val_accuracy: np.ndarray  # [V]
    val_examples: np.ndarray  # [V]
    classes: int
    config: Mapping[str, Any]
    clean: CleanPass | None

    @property
    def steps(self) -> np.ndarray:
        """[R] steps in each window."""
        return np.diff(self.step, prepend=0.0)

    @property
    def examples(self) -> np.ndarray:
        """[R] images visited in each window.

        If a step takes all of train and the config does not give its size, a step counts as one image. That is too few
        for any claim about an accuracy.
        """
        data = self.config["data"]
        return self.steps * max(1, data["batch_size"] or data["train_examples"])

    @property
    def clock(self) -> np.ndarray:
        """[R] the rate summed over steps, scaled to 1 at the end; steps if the rate is 0 throughout."""
        clock = np.cumsum(np.maximum(self.rate, 0.0) * self.steps)
        return clock / clock[-1] if clock[-1] > 0 else self.step / self.step[-1]

    @property
    def rule_ends(self) -> list[tuple[str, int]]:
        """The rules of the optimiser that end before the run does, and the steps at which they do."""
        batch_size = self.config["data"]["batch_size"] or 1
        to_steps = functools.partial(
            schedules.durations_to_steps,
            num_examples=round(batch_size * self.step[-1] / self.epoch[-1]),
            batch_size=batch_size,
        )
        total_steps = to_steps("horizon", self.config["horizon"], total_steps=None)["steps"]
        given = self.config["optimizer"]["rules"]
        in_steps = rules.in_steps(given, to_steps=functools.partial(to_steps, total_steps=total_steps))
        ends = [(rule, rules.parse(timed).until) for rule, timed in zip(given, in_steps, strict=True)]
        return [(rule, int(until[0])) for rule, until in ends if until]

    @property
    def chance(self) -> float:
        """The loss at chance."""
        return floors.chance_loss(self.config["loss"]["name"], num_classes=self.classes)

    @property
    def floor(self) -> float:
        """The lowest possible loss."""
        smoothing = self.config["label_smoothing"]
        return floors.lowest_loss(self.config["loss"]["name"], num_classes=self.classes, label_smoothing=smoothing)

    @property
    def excess(self) -> np.ndarray:
        """[R] loss above its floor."""
        return self.loss - self.floor

    @property
    def smooth(self) -> np.ndarray:
        """[R] the median of each window's loss and its two neighbours'."""
        return np.median(windows(np.pad(self.loss, 1, mode="edge"), 3), axis=1)

    @property
    def noise(self) -> np.ndarray:
        """[R] standard deviation of each window's loss, from the jumps between the ten windows before and after it.

        1.4826 times the median of absolute deviations is the standard deviation of normal noise.
        """
        steps = self.steps
        if len(steps) < 2:
            return np.zeros(len(steps))
        jumps = np.abs(np.diff(self.loss)) / np.sqrt(1 / steps[1:] + 1 / steps[:-1])
        return 1.4826 * np.median(windows(np.pad(jumps, 10, mode="symmetric"), 20), axis=1) / np.sqrt(steps)

    @property
    def restarted(self) -> np.ndarray:
        """bool [R]: whether the rate went up after it had halved. Warm restarts raise the loss on purpose."""
        halved = np.minimum.accumulate(self.rate / np.maximum.accumulate(np.maximum(self.rate, 1e-30))) < 0.5
        lowest = np.minimum.accumulate(np.where(halved, self.rate, np.inf))
        return halved & (self.rate > 1.5 * lowest)

    @property
    def path(self) -> float:
        """The summed norms of all updates over the norm of the weights: a bound on how far these have moved."""
        return float(self.update_ratio @ self.steps)

    @property
    def hardly_moved(self) -> bool:
        """Whether the weights are still the initial ones, to within `HARDLY_MOVED` of their norm."""
        return self.path < HARDLY_MOVED

    def part(self, start: float, end: float) -> np.ndarray:
        """bool [R]: the records with clock in (start, end], or the three nearest if these are fewer."""
        clock = self.clock
        inside = (clock > start) & (clock <= end)
        if inside.sum() < 3:
            inside[np.argsort(np.abs(clock - (start + end) / 2), kind="stable")[:3]] = True
        return inside

    def median(self, values: np.ndarray, start: float, end: float) -> float:
        """The median of `values` [R] over `part(start, end)`."""
        return float(np.median(values[self.part(start, end)]))

    def thirds(self, values: np.ndarray) -> tuple[float, float, float]:
        """The medians of `values` [R] in each third of the clock."""
        return tuple(self.median(values, i / 3, (i + 1) / 3) for i in range(3))

    def train(self, inside: np.ndarray) -> Accuracy:
        """Train accuracy over the windows `inside`, bool [R]."""
        return _pooled(self.accuracy, self.examples, inside)

    @property
    def mixes(self) -> bool:
        """Whether the train images are mixed: then loss and accuracy on train do not compare with others."""
        return self.config["data"]["mix"]["name"] != "none"

    @property
    def clean_train(self) -> Accuracy | None:
        """Train accuracy at the end, that of the clean pass if there was one; None if only mixed images were seen."""
        if self.clean:
            return self.clean.latest_train
        return None if self.mixes else self.train(self.part(2 / 3, 1.0))

    def val(self, inside: np.ndarray) -> Accuracy:
        """Validation accuracy over the evaluations `inside`, bool [V]."""
        return _pooled(self.val_accuracy, self.val_examples, inside)


def read(
    records: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    config: Mapping[str, Any],
    clean: CleanPass | None = None,
) -> Curve | None:
    """The records with finite values as a `Curve`; None if there are none."""
    keys = ("step", "epoch", "train_loss", "train_accuracy", "lr", "grad_norm")
    records = list({record["step"]: record for record in records if _finite(record, keys)}.values())
    if not records:
        return None
    judged = [i for i, record in enumerate(records) if _finite(record, ("val_loss", "val_accuracy"))]
    return Curve(
        *(np.array([record[key] for record in records], float) for key in keys),
        # If all weights start at zero, the ratio is NaN or infinite, which is no fault.
        update_ratio=np.nan_to_num([record["update_ratio"] for record in records], nan=0.0, posinf=1e9),
        val_index=np.array(judged, int),
        val_loss=np.array([records[i]["val_loss"] for i in judged], float),
        val_accuracy=np.array([records[i]["val_accuracy"] for i in judged], float),
        val_examples=np.array([records[i]["val_examples"] for i in judged], float),
        classes=num_classes,
        config=config,
        clean=clean,
    )


def windows(values: np.ndarray, length: int) -> np.ndarray:
    """[R - length + 1, length]: each `length` consecutive `values` [R]; [0, length] if R < length."""
    if len(values) < length:
        return np.empty((0, length))
    return np.lib.stride_tricks.sliding_window_view(values, length)


def _finite(record, keys):
    return all(isinstance(record.get(key), (int, float)) and math.isfinite(record[key]) for key in keys)


def _pooled(accuracy, examples, inside):
    total = float(examples[inside].sum())
    return Accuracy(float(accuracy[inside] @ examples[inside]) / max(1.0, total), total)
