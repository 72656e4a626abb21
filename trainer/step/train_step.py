"""The train step: augmentation, loss, gradient, update and metrics of one batch, a pure per-device function.

It follows the contract of `trainer.runtime.data_parallel`: `fn(replicated, sharded) -> replicated`. A batch holds this
device's share, B examples: image uint8 [B, H, W, C], label int32 [B], mask float32 [B] (0 on padding), index and epoch
int32 [B] (see `trainer.data.batching`). The batches of `eval_step` and `probe_step` have the first three.

The step knows no config, no file, and not how many devices there are. `accumulation` cuts the batch,
`nonfinite.skipping` may wrap the step, and `multi_step` makes several of them one call.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from linseed.trainer.data.augment.place import places
from linseed.trainer.optim import chain
from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import metrics, normalization
from linseed.trainer.step.accumulation import accumulate


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [..., C] in 0..255 to float32 in 0..1."""
    return images.astype(jnp.float32) / 255.0


def image_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key [B] per example, from its index in the global batch: the number of devices does not change the draw."""
    indices = jax.lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


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

    loss: (logits [B, C], labels [B] or targets [B, C]) -> [B].
    regularizer: params -> scalar, added to the mean loss.
    augment: (keys [B], images [B, H, W, C] in 0..1, places [B]) -> images.
    normalize: images -> images.
    mix: (key, images, labels [B]) -> (images, labels or targets [B, C]), over this device's share.
    accumulation_parts: gradient accumulation steps, the pieces into which a device cuts its share.
    ema_decay: of the moving average of the weights, where the state holds one.
    remat: `forward` of a `remat.Remat`.
    trained: params -> params, without a gradient where they are frozen.

    The gradient is that of the mean loss over the real examples of the global batch, however it is cut. `metrics` are
    the sums over these examples (see `metrics.masked_sums`), `grad_norm` (L2, before clipping), `update_ratio` (L2 of
    the update over L2 of the parameters) and `lr`.
    """

    def train_step(state, batch):
        root = jax.random.wrap_key_data(state.rng)
        key = jax.random.fold_in(root, state.step)
        augment_key, device_key = jax.random.split(key)
        dropout_key = jax.random.fold_in(device_key, jax.lax.axis_index(AXIS))
        keys = image_keys(augment_key, len(batch["label"]))
        images = augment(keys, to_unit(batch["image"]), places(root, batch["index"], batch["epoch"]))
        mix_key = jax.random.fold_in(dropout_key, accumulation_parts)  # pieces fold in 0 to parts - 1
        images, targets = mix(mix_key, normalize(images), batch["label"])
        batch = {"image": images, "target": targets, "label": batch["label"], "mask": batch["mask"]}
        examples = jax.lax.pmean(jnp.sum(batch["mask"]), AXIS)

        def mean_loss(params, model_state, piece, index):
            """This piece's share of the mean loss: the sum over pieces and the mean over devices is the mean loss."""
            with normalization.checked():
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
            """The regularised loss at `params`, its gradient, the sums and the model state, the same on all devices."""
            # The cast gives each device a gradient of its own, so that the pmean below is the only sum over devices.
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

        # For line searches, which evaluate the loss at other parameters. It costs nothing where it is not called.
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
            / jnp.maximum(optax.tree.norm(state.params), 1e-12),  # all weights may start at 0
            "lr": chain.applied_lr(opt_state),
        }
        state = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        return state, step_metrics

    return train_step
