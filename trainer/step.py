"""The train and eval steps: pure per-device functions.

Both follow the contract of `trainer.parallel`: `fn(replicated, sharded) -> replicated`. A batch
holds image uint8 [B, H, W, C], label int32 [B] and mask float32 [B] (0 on padding), where B is
this device's share. Nothing here knows a config, a file, or how many devices there are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from trainer import metrics, optim
from trainer.parallel import AXIS


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
    tx: optax.GradientTransformation,
    loss: Callable,
    augment: Callable,
    normalize: Callable,
    ema_decay: float,
) -> Callable:
    """`train_step(state, batch) -> (state, metrics)`.

    loss: (logits [B, C], labels [B]) -> [B]. augment: (keys [B], images [B, H, W, C] in 0..1) ->
    same. normalize: images -> same. The gradient is that of the mean loss over the real examples
    of the global batch. `metrics` are sums over those examples (see `metrics.masked_sums`), and
    `grad_norm` (L2, before clipping), `update_ratio` (L2 of the update over L2 of the parameters), `lr`.
    """

    def train_step(state, batch):
        labels, mask = batch["label"], batch["mask"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        augment_key, dropout_key = jax.random.split(key)
        images = augment(image_keys(augment_key, len(labels)), to_unit(batch["image"]))
        images = normalize(images)
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
        examples = jax.lax.pmean(jnp.sum(mask), AXIS)

        def mean_loss(params):
            logits, model_state = model.apply(
                {"params": params, **state.model_state},
                images,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=list(state.model_state),
            )
            losses = loss(logits, labels)
            sums = metrics.masked_sums(losses=losses, logits=logits, labels=labels, mask=mask)
            return sums["loss"] / examples, (sums, model_state)

        # Cast first: each device then has a gradient of its own, and the pmean below is the only sum over devices.
        params = jax.lax.pcast(state.params, AXIS, to="varying")
        grads, (sums, model_state) = jax.grad(mean_loss, has_aux=True)(params)
        grads = jax.lax.pmean(grads, AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema:
            current = {"params": params, "model_state": model_state}
            ema = moving_average(ema, current, decay=ema_decay, step=state.step)
        step_metrics = {
            **jax.lax.psum(sums, AXIS),
            "grad_norm": optax.tree.norm(grads),
            "update_ratio": optax.tree.norm(updates) / optax.tree.norm(state.params),
            "lr": optim.applied_lr(opt_state),
        }
        state = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        return state, step_metrics

    return train_step


def make_eval_step(*, model, loss: Callable, normalize: Callable) -> Callable:
    """`eval_step(weights, batch) -> sums`, with weights {"params", "model_state"} and no augmentation."""

    def eval_step(weights, batch):
        images = normalize(to_unit(batch["image"]))
        logits = model.apply({"params": weights["params"], **weights["model_state"]}, images, train=False)
        sums = metrics.masked_sums(
            losses=loss(logits, batch["label"]), logits=logits, labels=batch["label"], mask=batch["mask"]
        )
        return jax.lax.psum(sums, AXIS)

    return eval_step
