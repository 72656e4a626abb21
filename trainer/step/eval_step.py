"""The eval step: the logits of a batch, its masked sums, and its examples one by one; a pure per-device function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import scores
from linseed.trainer.step.train_step import to_unit
from linseed.trainer.step.tta import mean_over_views


def make_logits(*, model, normalize: Callable, views: Callable) -> Callable:
    """`logits(weights, images)`: weights {"params", "model_state"}, uint8 [B, H, W, C] -> float32 [B, C].

    views: an entry of `tta.VIEWS`, over which the logits are averaged.
    """

    def logits(weights, images):
        variables = {"params": weights["params"], **weights["model_state"]}
        return model.apply(variables, normalize(to_unit(images)), train=False)

    return mean_over_views(logits, views)


def make_eval_step(*, logits: Callable, loss: Callable) -> Callable:
    """`eval_step(weights, batch) -> (sums, examples)`, for the sums see `scores.class_sums`.

    weights: {"params", "model_state"}. logits: made by `make_logits`. loss: without label smoothing. examples: arrays
    [B] in the order of the whole batch: `logits` float32 [B, C], `brightness` float32, the mean pixel in 0..255,
    `label` int32, `mask` float32.
    """
    predict = logits

    def eval_step(weights, batch):
        logits = predict(weights, batch["image"])
        sums = scores.class_sums(
            losses=loss(logits, batch["label"]), logits=logits, labels=batch["label"], mask=batch["mask"]
        )
        examples = {
            "logits": logits,
            "brightness": jnp.mean(batch["image"], axis=(1, 2, 3), dtype=jnp.float32),
            "label": batch["label"],
            "mask": batch["mask"],
        }
        return jax.lax.psum(sums, AXIS), jax.tree.map(_of_all_devices, examples)

    return eval_step


def _of_all_devices(rows):
    """[B, ...] of each device -> [devices * B, ...], the same on all: a sum to which each device adds its own part."""
    devices, own = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)
    places = jnp.zeros((devices, *rows.shape), rows.dtype).at[own].set(rows)
    return jax.lax.psum(places, AXIS).reshape(-1, *rows.shape[1:])
