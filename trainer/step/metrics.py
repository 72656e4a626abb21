"""Metrics: masked sums inside the step, means outside.

A step returns sums over its real examples. The sums of many batches, divided once, give the exact mean, however the
batches were cut or padded.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

# The metrics of a train step, in the order of its row in the window of the loop.
STEP_METRICS = ("loss", "correct", "examples", "grad_norm", "update_ratio", "lr")
# A NaN or an infinity anywhere in the loss, the gradient or the update reaches one of these.
FINITE = ("loss", "grad_norm", "update_ratio")


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


def pack(step_metrics: Mapping[str, jax.Array]) -> jax.Array:
    """STEP_METRICS of a step as one row, float32 [K], to fetch a window of rows in one transfer."""
    return jnp.stack([jnp.asarray(step_metrics[name], jnp.float32) for name in STEP_METRICS])


def unpack(rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Rows [N, K] of `pack` as the metrics of N steps."""
    return [dict(zip(STEP_METRICS, row, strict=True)) for row in rows]


def means(sums: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """`loss` (nats), `accuracy` (0..1) and `examples` over all of `sums` (host scalars, added in float64)."""
    sums = list(sums)
    loss, correct, examples = (sum(float(s[key]) for s in sums) for key in ("loss", "correct", "examples"))
    return {"loss": loss / examples, "accuracy": correct / examples, "examples": int(examples)}


def summarize(step_metrics: list[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The record of a log window: means over examples for loss and accuracy, over steps for norms.

    `lr` is the last step's.
    """
    train = means(step_metrics)
    return {
        "train_loss": train["loss"],
        "train_accuracy": train["accuracy"],
        "lr": float(step_metrics[-1]["lr"]),
        "grad_norm": float(np.mean([m["grad_norm"] for m in step_metrics])),
        "update_ratio": float(np.mean([m["update_ratio"] for m in step_metrics])),
    }


def is_finite(step: Mapping[str, np.ndarray]) -> bool:
    """Whether the loss, the gradient and the update of a step are finite."""
    return all(np.isfinite(step[name]) for name in FINITE)
