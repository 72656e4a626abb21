"""The training state: arrays only, all of which are checkpointed."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.trainer.optim import chain


@flax.struct.dataclass
class TrainState:
    """All that changes during training.

    step: int32 scalar, the number of updates so far. params: float32 tree. model_state: the model's other
    collections (BatchNorm statistics), {} if none. opt_state: Optax state. rng: uint32 key data of
    the root key, never advanced. ema: {"params", "model_state"} averaged over steps, {} if off.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: optax.OptState
    rng: jax.Array
    ema: Any


def make_init(
    model,
    tx: optax.GradientTransformation,
    *,
    image_shape: tuple[int, ...],
    data_init: Callable = lambda params: params,
) -> Callable:
    """The compiled `init(root) -> (params, model_state, opt_state)`; root: a key. `image_shape` is (H, W, C).

    data_init: from `data_init.make_data_init`; sets initial parameters that depend on the training images.
    """

    def init(root):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.fold_in(root, 0), images, train=False)
        model_state, params = flax.core.pop(variables, "params")
        params = data_init(params)
        return params, model_state, tx.init(params)

    return jax.jit(init)


def create(init: Callable, *, seed: int, ema: bool) -> TrainState:
    """The state before the first step, as host arrays. The initial weights depend only on the model and `seed`."""
    root = jax.random.key(seed)
    params, model_state, opt_state = jax.device_get(init(root))
    average = jax.tree.map(np.array, {"params": params, "model_state": model_state}) if ema else {}
    return TrainState(
        step=np.zeros((), np.int32),
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        rng=np.asarray(jax.random.key_data(root)),
        ema=average,
    )


def with_weights(state: TrainState, leaves: Mapping[str, np.ndarray], *, opt_init: Callable) -> TrainState:
    """`state` before the first step with these variables in place of its own: in its average and optimiser too.

    leaves: by '/'-joined path, "params/head/bias" or "batch_stats/stem/norm/mean". opt_init: params -> optimiser state.
    """
    old = flax.traverse_util.flatten_dict({"params": state.params, **state.model_state}, sep="/")
    model_state = flax.traverse_util.unflatten_dict({**old, **leaves}, sep="/")
    params = model_state.pop("params")
    return state.replace(
        params=params,
        model_state=model_state,
        opt_state=jax.device_get(opt_init(params)),
        ema=jax.tree.map(np.array, {"params": params, "model_state": model_state}) if state.ema else {},
    )


def evaluated_weights(state: TrainState) -> dict[str, Any]:
    """The {"params", "model_state"} to evaluate: the average, if there is one."""
    return state.ema or {
        "params": chain.evaluated_params(state.opt_state, state.params),
        "model_state": state.model_state,
    }
