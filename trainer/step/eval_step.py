"""The eval step: the logits of a batch and its masked sums, a pure per-device function."""

from collections.abc import Callable

import jax

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
    """`eval_step(weights, batch) -> sums`, see `scores.class_sums`.

    weights: {"params", "model_state"}. logits: made by `make_logits`. loss: without label smoothing.
    """
    predict = logits

    def eval_step(weights, batch):
        logits = predict(weights, batch["image"])
        sums = scores.class_sums(
            losses=loss(logits, batch["label"]), logits=logits, labels=batch["label"], mask=batch["mask"]
        )
        return jax.lax.psum(sums, AXIS)

    return eval_step
