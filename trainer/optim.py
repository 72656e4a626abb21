"""Optimisers: chains of Optax links, each named after its role.

An entry of `OPTIMIZERS` returns the links between clipping and the learning
rate. `make_tx` puts the chain together with its schedule, so that the rate in
the optimiser state is the rate that was applied.
"""

import jax
import optax

from trainer.errors import ConfigError, unknown_name


def decay_mask(params):
    """True for the leaves that weight decay acts on: those with two or more axes.

    Biases and the scales of normalisation layers are vectors, and are spared.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _coupled_decay(weight_decay):
    # Coupled L2: the decay is part of the gradient, so it enters the momentum.
    return ("weight_decay", optax.add_decayed_weights(weight_decay, decay_mask))


def _sgd(*, weight_decay):
    # x -= lr g
    return (_coupled_decay(weight_decay),)


def _momentum(*, momentum, weight_decay):
    # v = rho v + g; x -= lr v. Sutskever et al. 2013.
    return (_coupled_decay(weight_decay), ("momentum", optax.trace(momentum)))


def _nesterov(*, momentum, weight_decay):
    # v = rho v + g; x -= lr (g + rho v). Sutskever et al. 2013, in the form of PyTorch and Optax.
    return (_coupled_decay(weight_decay), ("momentum", optax.trace(momentum, nesterov=True)))


def _adamw(*, b1, b2, eps, weight_decay):
    # Decoupled: the decay is added after the scaling. Loshchilov and Hutter 2019.
    return (
        ("adam", optax.scale_by_adam(b1, b2, eps)),
        ("weight_decay", optax.add_decayed_weights(weight_decay, decay_mask)),
    )


OPTIMIZERS = {"adamw": _adamw, "momentum": _momentum, "nesterov": _nesterov, "sgd": _sgd}


def make_tx(name: str, *, schedule: optax.Schedule, clip_norm: float, **kwargs) -> optax.GradientTransformation:
    """The chain clip -> `OPTIMIZERS[name]` -> learning rate.

    `schedule` maps the number of updates made so far to the rate. `clip_norm` is the largest
    global L2 norm of a gradient, before decay; 0 does not clip. `kwargs` go to the entry.
    Raises ConfigError for an unknown name.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(unknown_name("optimizer", name, OPTIMIZERS))
    clip = (("clip", optax.clip_by_global_norm(clip_norm)),) if clip_norm else ()
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=schedule)
    return optax.named_chain(*clip, *OPTIMIZERS[name](**kwargs), ("learning_rate", scale))


def applied_lr(opt_state) -> jax.Array:
    """The learning rate (float32 scalar) of the update that produced `opt_state`."""
    return opt_state["learning_rate"].hyperparams["learning_rate"]
