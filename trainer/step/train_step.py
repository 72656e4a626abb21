"""The train and eval steps: pure per-device functions.

Both follow the contract of `trainer.runtime.data_parallel`: `fn(replicated, sharded) -> replicated`. A batch
holds image uint8 [B, H, W, C], label int32 [B] and mask float32 [B] (0 on padding), where B is
this device's share; a train batch also index and epoch, int32 [B] (see `trainer.data.batching`).
Nothing here knows a config, a file, or how many devices there are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from linseed.trainer.data.augment.place import places
from linseed.trainer.optim import chain
from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import metrics
from linseed.trainer.step.accumulation import accumulate
from linseed.trainer.step.tta import mean_over_views


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [..., C] in 0..255 to float32 in 0..1."""
    return images.astype(jnp.float32) / 255.0


def image_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key [B] per example, from its place in the global batch: the draw does not depend on the devices."""
    place = jax.lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(place)


def moving_average(average, current, *, decay: float, step: jax.Array):
    """One step of an exponential moving average, decay min(decay, (1 + t) / (10 + t)): short memory at first."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, current)


def make_train_step(
    *,
    model,
    tx: optax.GradientTransformationExtraArgs,
    loss: Callable,
    regularizer: Callable,
    augment: Callable,
    normalize: Callable,
    mix: Callable,
    accumulation_parts: int,
    ema_decay: float,
    remat: Callable,
    trained: Callable,
) -> Callable:
    """`train_step(state, batch) -> (state, metrics)`.

    loss: (logits [B, C], labels [B] or targets [B, C]) -> [B]. regularizer: params -> scalar, added to the mean loss.
    augment: (keys [B], images [B, H, W, C] in 0..1, places [B]) -> images. normalize: images -> same. mix: (key,
    images, labels [B]) -> images, labels or targets [B, C], over this device's share. The gradient is that of the mean
    loss over the real examples of the global batch, worked through in `accumulation_parts` pieces a device. `metrics`
    are sums over those examples (see `metrics.masked_sums`), and `grad_norm` (L2, before clipping), `update_ratio` (L2
    of the update over L2 of the parameters), `lr`. remat: of `remat.Remat`, its `forward`. trained: params -> params,
    some of them without a gradient.
    """

    def train_step(state, batch):
        root = jax.random.wrap_key_data(state.rng)
        key = jax.random.fold_in(root, state.step)
        augment_key, device_key = jax.random.split(key)
        dropout_key = jax.random.fold_in(device_key, jax.lax.axis_index(AXIS))
        keys = image_keys(augment_key, len(batch["label"]))
        images = augment(keys, to_unit(batch["image"]), places(root, batch["index"], batch["epoch"]))
        mix_key = jax.random.fold_in(dropout_key, accumulation_parts)  # the pieces fold in what is below
        images, targets = mix(mix_key, normalize(images), batch["label"])
        batch = {"image": images, "target": targets, "label": batch["label"], "mask": batch["mask"]}
        examples = jax.lax.pmean(jnp.sum(batch["mask"]), AXIS)

        def mean_loss(params, model_state, piece, index):
            """This piece's share of the mean loss of this device; its sum over pieces and mean over devices count."""
            logits, model_state = model.apply(
                {"params": trained(params), **model_state},
                piece["image"],
                train=True,
                rngs={"dropout": jax.random.fold_in(dropout_key, index) if accumulation_parts > 1 else dropout_key},
                mutable=list(model_state),
            )
            sums = metrics.masked_sums(
                losses=loss(logits, piece["target"]), logits=logits, labels=piece["label"], mask=piece["mask"]
            )
            return sums["loss"] / examples, (sums, model_state)

        def evaluate(params):
            """The regularised loss at `params` and its gradient, the same on all devices; and sums and model state."""
            # Cast first: each device then has a gradient of its own, and the pmean below is the only sum over devices.
            local = jax.lax.pcast(params, AXIS, to="varying")

            def piece_gradient(model_state, piece, index):
                gradient = jax.grad(remat(mean_loss), has_aux=True)
                grads, (sums, model_state) = gradient(local, model_state, piece, index)
                return model_state, (grads, sums)

            model_state, (grads, sums) = accumulate(piece_gradient, state.model_state, batch, parts=accumulation_parts)
            penalty, penalty_grads = jax.value_and_grad(regularizer)(params)
            grads = jax.tree.map(jnp.add, jax.lax.pmean(grads, AXIS), penalty_grads)
            sums = jax.lax.psum(sums, AXIS)
            return sums["loss"] / sums["examples"] + penalty, grads, sums, model_state

        # Line searches and the like ask for the loss elsewhere. What is not called is not computed.
        @jax.custom_vjp
        def value_fn(params):
            return evaluate(params)[0]

        value_fn.defvjp(
            lambda params: evaluate(params)[:2], lambda grads, scale: (jax.tree.map(lambda g: scale * g, grads),)
        )

        value, grads, sums, model_state = evaluate(state.params)
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            value=value,
            grad=grads,
            value_fn=value_fn,
            grad_fn=lambda params: evaluate(params)[1],
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema:
            current = {"params": params, "model_state": model_state}
            ema = moving_average(ema, current, decay=ema_decay, step=state.step)
        step_metrics = {
            **sums,
            "grad_norm": optax.tree.norm(grads),
            "update_ratio": optax.tree.norm(updates)
            / jnp.maximum(optax.tree.norm(state.params), 1e-12),  # W = 0 is fine
            "lr": chain.applied_lr(opt_state),
        }
        state = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        return state, step_metrics

    return train_step


def make_logits(*, model, normalize: Callable, views: Callable) -> Callable:
    """`logits(weights, images)`: weights {"params", "model_state"}, uint8 [B, H, W, C] -> float32 [B, C].

    views: an entry of `views.VIEWS`, over which the logits are averaged.
    """

    def logits(weights, images):
        variables = {"params": weights["params"], **weights["model_state"]}
        return model.apply(variables, normalize(to_unit(images)), train=False)

    return mean_over_views(logits, views)


def make_eval_step(*, logits: Callable, loss: Callable) -> Callable:
    """`eval_step(weights, batch) -> sums`, with weights {"params", "model_state"}. logits: of `make_logits`."""
    predict = logits

    def eval_step(weights, batch):
        logits = predict(weights, batch["image"])
        sums = metrics.masked_sums(
            losses=loss(logits, batch["label"]), logits=logits, labels=batch["label"], mask=batch["mask"]
        )
        return jax.lax.psum(sums, AXIS)

    return eval_step


def make_probe_step(*, model, loss: Callable, regularizer: Callable, normalize: Callable) -> Callable:
    """`probe_step(state, batch) -> measurements`: what a first step would see, with nothing augmented and no update.

    loss: without label smoothing. Returns float32 scalars `loss` (mean over the batch), `zero_loss` (of zero logits),
    `penalty`, `input_mean` and `input_std` (of all normalised pixels), `logit_min`, `logit_max`, `logit_sum_error`
    (the largest distance of a row's sum from 1), and `grads` (a tree as params, of loss alone). The model trains.
    """

    def probe_step(state, batch):
        images = normalize(to_unit(batch["image"]))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), jax.lax.axis_index(AXIS))
        examples = jax.lax.pmean(jnp.sum(batch["mask"]), AXIS)

        def mean(values):
            return jnp.sum(jnp.where(batch["mask"] > 0, values, 0.0)) / examples

        def mean_loss(params):
            variables = {"params": params, **state.model_state}
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
