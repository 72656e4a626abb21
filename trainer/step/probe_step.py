"""The probe step: what a first train step would see, measured before training. A pure per-device function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import normalization
from linseed.trainer.step.train_step import to_unit


def make_probe_step(*, model, loss: Callable, regularizer: Callable, normalize: Callable) -> Callable:
    """`probe_step(state, batch) -> measurements` of the batch as it is: nothing is augmented or updated.

    The model runs in training mode. loss: without label smoothing.

    Returns float32 scalars: `loss` (mean over the batch), `zero_loss` (the loss of zero logits), `penalty`,
    `input_mean` and `input_std` (of all normalised pixels), `logit_min`, `logit_max` and `logit_sum_error` (the largest
    distance of a row's sum from 1). And `grads`, a tree as params: the gradient of the loss without the penalty.
    """

    def probe_step(state, batch):
        images = normalize(to_unit(batch["image"]))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), jax.lax.axis_index(AXIS))
        examples = jax.lax.pmean(jnp.sum(batch["mask"]), AXIS)

        def mean(values):
            return jnp.sum(jnp.where(batch["mask"] > 0, values, 0.0)) / examples

        def mean_loss(params):
            variables = {"params": params, **state.model_state}
            with normalization.checked():
                logits, _ = model.apply(
                    variables, images, train=True, rngs={"dropout": key}, mutable=list(state.model_state)
                )
            return mean(loss(logits, batch["label"])), logits

        local = jax.lax.pcast(state.params, AXIS, to="varying")
        (value, logits), grads = jax.value_and_grad(mean_loss, has_aux=True)(local)
        averages = {
            "loss": value,
            "zero_loss": mean(loss(jnp.zeros_like(logits), batch["label"])),
            "input_mean": mean(jnp.mean(images, axis=(1, 2, 3))),
            "input_square": mean(jnp.mean(images**2, axis=(1, 2, 3))),
            "grads": grads,
        }
        averages = jax.lax.pmean(averages, AXIS)
        input_std = jnp.sqrt(averages.pop("input_square") - averages["input_mean"] ** 2)
        return {
            **averages,
            "input_std": input_std,
            "penalty": regularizer(state.params),
            "logit_min": jax.lax.pmin(jnp.min(logits), AXIS),
            "logit_max": jax.lax.pmax(jnp.max(logits), AXIS),
            "logit_sum_error": jax.lax.pmax(jnp.max(jnp.abs(jnp.sum(logits, axis=1) - 1)), AXIS),
        }

    return probe_step
