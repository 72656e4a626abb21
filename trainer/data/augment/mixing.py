"""Mixes whole images and their labels: `mix(key, images, targets, *, ...) -> images, targets`.

images: float [B, H, W, C]. targets: float [B, K], each row a distribution over the classes (one-hot, or smoothed), so
cross-entropy with it is the mixed loss.

Partners come from the given batch, with one permutation and one lambda per batch, as published. On several devices that
batch is each device's share. So, unlike an op's draw, the result depends on the number of devices. The same share and
key give the same result. Padded examples must not be in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from linseed.ranges import Positive
from linseed.trainer.data.augment.erase import box_mask


def unmixed(key, images, targets):
    """Returns images and targets unchanged; draws nothing."""
    return images, targets


def mixup(key, images, targets, *, alpha: Positive = 0.2):
    """lambda * own + (1 - lambda) * partner, for images and targets, with lambda from Beta(alpha, alpha).

    Zhang et al. 2018 (arXiv:1710.09412); there alpha is 0.2 for ImageNet and 1 for CIFAR-10.
    """
    lambda_key, partner_key = jax.random.split(key)
    own = jax.random.beta(lambda_key, alpha, alpha, dtype=images.dtype)
    partner = jax.random.permutation(partner_key, len(images))
    return own * images + (1 - own) * jnp.take(images, partner, axis=0), own * targets + (1 - own) * jnp.take(
        targets, partner, axis=0
    )


def cutmix(key, images, targets, *, alpha: Positive = 1.0):
    """Pastes a box of each image's partner: 1 - lambda of the area, with lambda from Beta(alpha, alpha).

    Yun et al. 2019 (arXiv:1905.04899); there alpha is 1. The box has the image's aspect ratio. Its centre is drawn from
    the whole image, and parts outside are cut off. Targets are mixed by the share of pixels actually pasted. One box
    per batch, as in their code.
    """
    lambda_key, partner_key, centre_key = jax.random.split(key, 3)
    own = jax.random.beta(lambda_key, alpha, alpha, dtype=images.dtype)
    partner = jax.random.permutation(partner_key, len(images))
    sides = jnp.array(images.shape[1:3])
    box = jnp.floor(sides * jnp.sqrt(1 - own)).astype(jnp.int32)
    top, left = jax.random.randint(centre_key, (2,), 0, sides) - box // 2
    pasted = box_mask(top, left, box[0], box[1], shape=images.shape[1:])
    share = jnp.mean(pasted, dtype=targets.dtype)
    return jnp.where(pasted, jnp.take(images, partner, axis=0), images), (1 - share) * targets + share * jnp.take(
        targets, partner, axis=0
    )


MIXING = {"cutmix": cutmix, "mixup": mixup, "none": unmixed}


def make_mix(name: str, *, num_classes: int, **kwargs) -> Callable:
    """`mix(key, images, labels) -> images, targets`: `MIXING[name]` on one-hot labels.

    labels: int32 [B]; targets: float32 [B, num_classes], or the labels themselves for "none".
    """
    if name == "none":
        return MIXING[name]
    return lambda key, images, labels: MIXING[name](key, images, jax.nn.one_hot(labels, num_classes), **kwargs)
