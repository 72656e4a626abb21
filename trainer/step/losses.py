"""Losses: `loss(logits, labels) -> one value per example`.

logits: float32 [B, C]. labels: int32 [B], or soft targets float32 [B, C] whose rows sum to 1, as
mixup and CutMix make them; a loss of soft targets that are one-hot is the loss of the labels. Returns float32 [B].
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from linseed.ranges import Length, NonNegative
from linseed.trainer.errors import ConfigError


def soft_targets(labels: jax.Array, *, num_classes: int) -> jax.Array:
    """float32 [B, num_classes]: one-hot rows for int [B], the soft targets themselves for [B, num_classes]."""
    return labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)


def softmax(logits: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Cross-entropy of softmax(logits) against smoothed labels, in nats; log C at zero logits.

    The target is `1 - label_smoothing` on the label plus `label_smoothing / C` everywhere (Szegedy et al. 2016).
    """
    targets = optax.smooth_labels(soft_targets(labels, num_classes=logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def weighted_softmax(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float,
    class_weights: Annotated[tuple[NonNegative, ...], Length(1)],
) -> jax.Array:
    """w_y times `softmax` of the smoothed label y, with a weight w for each class; for soft targets the mean over y.

    The smoothing of an example has the example's weight. PyTorch gives each term the weight of its own class instead,
    so that smoothing draws all examples to the classes of large weight. The mean over a batch is one over examples;
    PyTorch divides by the sum of their weights.
    Raises ConfigError where the number of weights is not that of the classes, or all of them are 0.
    """
    num_classes = logits.shape[-1]
    if len(class_weights) != num_classes:
        raise ConfigError(f"loss.class_weights has {len(class_weights)} numbers; give {num_classes}, one a class")
    if not any(class_weights):
        raise ConfigError("loss.class_weights are all 0: nothing would be learned; give some of them more")
    weighted = soft_targets(labels, num_classes=num_classes) * jnp.array(class_weights, logits.dtype)
    uniform = jnp.mean(weighted, axis=1, keepdims=True)
    return optax.softmax_cross_entropy(logits, (1 - label_smoothing) * weighted + label_smoothing * uniform)


def svm(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Multiclass hinge loss, sum over j != y of max(0, f_j - f_y + 1); C - 1 at zero logits.

    Weston and Watkins 1999. Optax's `multiclass_hinge_loss` is Crammer and Singer's, which takes the
    largest term in place of the sum. Of soft targets: the mean over y, weighted by them, with memory B x C x C.
    """
    if labels.ndim == 1:
        right = jnp.take_along_axis(logits, labels[:, None], axis=1)
        return jnp.sum(jax.nn.relu(logits - right + 1), axis=1) - 1  # the term of y itself is 1
    margins = jax.nn.relu(logits[:, None, :] - logits[:, :, None] + 1)
    return jnp.sum(labels * (jnp.sum(margins, axis=2) - 1), axis=1)


def sigmoid(logits: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    """One against all: binary cross-entropy of each class's sigmoid, summed over classes, in nats.

    C log 2 at zero logits. Smoothed targets as for `softmax`.
    """
    targets = optax.smooth_labels(soft_targets(labels, num_classes=logits.shape[-1]), label_smoothing)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=1)


LOSSES = {"sigmoid": sigmoid, "softmax": softmax, "svm": svm, "weighted_softmax": weighted_softmax}


def make_loss(name: str, *, label_smoothing: float, **kwargs) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`LOSSES[name]` with its parameters fixed.

    Raises ConfigError for label smoothing with a loss that has none.
    """
    if "label_smoothing" in inspect.signature(LOSSES[name]).parameters:
        kwargs["label_smoothing"] = label_smoothing
    elif label_smoothing:
        raise ConfigError(f"the loss '{name}' knows no label smoothing; set config.label_smoothing to 0")
    return functools.partial(LOSSES[name], **kwargs)
