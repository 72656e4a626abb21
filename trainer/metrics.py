"""Metrics: masked sums inside the step, means at the border.

A step returns sums over its real examples, so that adding the sums of many
batches, however they were cut or padded, and dividing once is exact.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


def masked_sums(*, losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is 1.

    losses, mask: float32 [B]; logits: float32 [B, C]; labels: int32 [B]. Returns float32
    scalars `loss`, `correct`, `examples`. A padded example enters no sum, even if its loss is NaN.
    """
    real = mask > 0
    correct = jnp.argmax(logits, axis=-1) == labels
    return {
        "loss": jnp.sum(jnp.where(real, losses, 0.0)),
        "correct": jnp.sum(jnp.where(real, correct, False).astype(jnp.float32)),
        "examples": jnp.sum(mask),
    }


def means(sums: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """`loss` (nats), `accuracy` (0..1) and `examples` over all of `sums` (host scalars, added in float64)."""
    sums = list(sums)
    loss, correct, examples = (sum(float(s[key]) for s in sums) for key in ("loss", "correct", "examples"))
    return {"loss": loss / examples, "accuracy": correct / examples, "examples": int(examples)}


def summarize(step_metrics: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """One record of the steps of a log window: means over examples for loss and accuracy, over steps for norms.

    `lr` is that of the last step.
    """
    train = means(step_metrics)
    return {
        "train_loss": train["loss"],
        "train_accuracy": train["accuracy"],
        "lr": float(step_metrics[-1]["lr"]),
        "grad_norm": float(np.mean([m["grad_norm"] for m in step_metrics])),
        "update_ratio": float(np.mean([m["update_ratio"] for m in step_metrics])),
    }


def first_non_finite(step_metrics: list[Mapping[str, np.ndarray]]) -> int | None:
    """The index of the first step whose loss, gradient or update is NaN or infinite, or None."""
    for index, entry in enumerate(step_metrics):
        if not all(np.isfinite(entry[key]) for key in ("loss", "grad_norm", "update_ratio")):
            return index
    return None
