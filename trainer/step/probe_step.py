"""The probe step: what a first train step would see, measured before training. A pure per-device function."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import normalization
from linseed.trainer.step.train_step import to_unit


def make_probe_step(*, model, loss: Callable, regularizer: Callable, normalize: Callable) -> Callable:
    """`probe_step(state, batch) -> measurements` of the batch as it is: nothing is augmented or updated.

    The model runs in training mode. loss: without label smoothing.

    Returns float32 scalars: `loss` (mean over the batch), `zero_loss` (the loss of zero logits), `penalty`,
    `input_mean` and `input_std` (of all that the first layer with weights is given), `logit_min`, `logit_max` and
    `logit_sum_error` (the largest distance of a row's sum from 1). And `grads`, a tree as params: the gradient of the
    loss without the penalty.
    """

    def probe_step(state, batch):
        images = normalize(to_unit(batch["image"]))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), jax.lax.axis_index(AXIS))
        examples = jax.lax.pmean(jnp.sum(batch["mask"]), AXIS)

        def mean(values):
            return jnp.sum(jnp.where(batch["mask"] > 0, values, 0.0)) / examples

        def mean_loss(params):
            variables = {"params": params, **state.model_state}
            seen = []
            with normalization.checked(), nn.intercept_methods(functools.partial(_note_first_input, seen)):
                logits, _ = model.apply(
                    variables, images, train=True, rngs={"dropout": key}, mutable=list(state.model_state)
                )
            return mean(loss(logits, batch["label"])), (logits, seen[0] if seen else images)

        def mean_over_images(values):
            return jax.lax.pmean(mean(jnp.mean(values, axis=tuple(range(1, values.ndim)))), AXIS)

        local = jax.lax.pcast(state.params, AXIS, to="varying")
        (value, (logits, inputs)), grads = jax.value_and_grad(mean_loss, has_aux=True)(local)
        inputs = inputs.astype(jnp.float32)
        input_mean = mean_over_images(inputs)
        averages = {
            "loss": value,
            "zero_loss": mean(loss(jnp.zeros_like(logits), batch["label"])),
            "grads": grads,
        }
        return {
            **jax.lax.pmean(averages, AXIS),
            "input_mean": input_mean,
            "input_std": jnp.sqrt(mean_over_images((inputs - input_mean) ** 2)),
            "penalty": regularizer(state.params),
            "logit_min": jax.lax.pmin(jnp.min(logits), AXIS),
            "logit_max": jax.lax.pmax(jnp.max(logits), AXIS),
            "logit_sum_error": jax.lax.pmax(jnp.max(jnp.abs(jnp.sum(logits, axis=1) - 1)), AXIS),
        }

    return probe_step


def _note_first_input(seen, layer, args, kwargs, context):
    """Interceptor that appends to `seen` what the first layer with weights of its own is given."""
    if not seen and context.method_name == "__call__":
        own = context.module.variables.get("params", {}).values()
        if any(getattr(leaf, "ndim", 0) > 1 for leaf in own):
            seen.append(args[0])
    return layer(*args, **kwargs)
