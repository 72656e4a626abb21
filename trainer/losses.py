"""Losses: `loss(logits, labels) -> one value per example`."""

import functools
from collections.abc import Callable

import jax
import optax

from trainer.errors import ConfigError, unknown_name


def softmax(logits: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Cross-entropy of softmax(logits) against smoothed labels.

    logits: float32 [B, C]; labels: int32 [B]. Returns float32 [B], in nats. The target is
    `1 - label_smoothing` on the label plus `label_smoothing / C` everywhere (Szegedy et al. 2016).
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


LOSSES = {"softmax": softmax}


def make_loss(name: str, *, label_smoothing: float, **kwargs) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`LOSSES[name]` with its parameters fixed. Raises ConfigError for an unknown name."""
    if name not in LOSSES:
        raise ConfigError(unknown_name("loss", name, LOSSES))
    return functools.partial(LOSSES[name], label_smoothing=label_smoothing, **kwargs)
