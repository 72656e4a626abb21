"""What an evaluation comes to: counts by class in the step, and outside of it the scores that they give.

The counts are integers, so that the scores are exact whatever the batches, the devices and their order.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The scores by which a run chooses its best checkpoint (config.eval.monitor).
MONITORS = ("accuracy", "balanced_accuracy", "loss")

_Z = 1.959963984540054  # of a two-sided 95 % interval


def class_sums(*, losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is 1: `loss`, float32, and by class `correct` and `examples`, int32 [C].

    losses, mask: float32 [B]; logits: float32 [B, C]; labels: int32 [B]. A padded example enters no sum, even if its
    loss is NaN.
    """
    real = mask > 0
    correct = real & (jnp.argmax(logits, axis=-1) == labels)

    def by_class(counted):
        return jax.ops.segment_sum(counted.astype(jnp.int32), labels, num_segments=logits.shape[-1])

    return {
        "loss": jnp.sum(jnp.where(real, losses, 0.0)),
        "correct": by_class(correct),
        "examples": by_class(real),
    }


def scores(sums: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """The scores of a split, given the `class_sums` of its batches (host arrays).

    `loss`: mean, in nats. `accuracy`: 0..1. `balanced_accuracy`: the mean, over the classes that occur, of the share of
    their examples that is right. `accuracy_interval`, `balanced_accuracy_interval`: [low, high] at 95 %, as images
    drawn anew would change them; see `wilson` and `balanced_interval`. `majority_share`: the share of the most frequent
    class, which is the accuracy of always answering it. `examples`: their number.
    """
    sums = list(sums)
    loss = sum(float(each["loss"]) for each in sums)
    correct = np.sum([each["correct"] for each in sums], axis=0, dtype=np.int64)
    examples = np.sum([each["examples"] for each in sums], axis=0, dtype=np.int64)
    correct, examples = correct[examples > 0], examples[examples > 0]
    right, total = int(correct.sum()), int(examples.sum())
    return {
        "loss": loss / total,
        "accuracy": right / total,
        "accuracy_interval": [float(limit) for limit in wilson(right, total)],
        "balanced_accuracy": float(np.mean(correct / examples)),
        "balanced_accuracy_interval": balanced_interval(correct, examples),
        "majority_share": int(examples.max()) / total,
        "examples": total,
    }


def score(figures: Mapping[str, Any], monitor: str) -> float:
    """The score that `monitor`, one of MONITORS, names, the higher the better: a loss counts negative."""
    return -figures["loss"] if monitor == "loss" else figures[monitor]


def wilson(correct, examples) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval (low, high) of a share, `correct` of `examples`, numbers or arrays (Wilson 1927)."""
    examples = np.asarray(examples, np.float64)
    share, z = correct / examples, _Z**2 / examples
    centre, half = share + z / 2, np.sqrt(z * share * (1 - share) + (z / 2) ** 2)
    return np.maximum(0.0, (centre - half) / (1 + z)), np.minimum(1.0, (centre + half) / (1 + z))


def balanced_interval(correct: np.ndarray, examples: np.ndarray) -> list[float]:
    """The 95 % interval [low, high] of balanced accuracy, from int [C] of each class, with examples above 0.

    The limits lie as far from the mean as those of Wilson's interval for each class do from its share, added in
    quadrature: Zou and Donner 2008, "Construction of confidence limits about effect measures", for a mean of
    independent shares. Of one class it is Wilson's interval.
    """
    shares = correct / examples
    low, high = wilson(correct, examples)
    mean, classes = float(np.mean(shares)), len(shares)
    return [mean - math.hypot(*(shares - low)) / classes, mean + math.hypot(*(high - shares)) / classes]


def standard_error(figures: Mapping[str, Any], monitor: str) -> float:
    """The standard error of `score`, as images drawn anew would change it; 0 for a loss, whose error is not known."""
    if monitor == "loss":
        return 0.0
    if monitor == "accuracy":
        return math.sqrt(figures["accuracy"] * (1 - figures["accuracy"]) / figures["examples"])
    low, high = figures[f"{monitor}_interval"]
    return (high - low) / (2 * _Z)


def beside(figures: Mapping[str, Any], *, prefix: str = "") -> str:
    """What stands beside an accuracy as text: " (balanced 50.00%, majority 98.04%)"; "" for those of old runs."""
    if f"{prefix}majority_share" not in figures:
        return ""
    balanced, majority = (figures[f"{prefix}{key}"] for key in ("balanced_accuracy", "majority_share"))
    return f" (balanced {balanced:.2%}, majority {majority:.2%})"
