"""Mixing of whole images, which changes labels as well: `mix(key, images, targets, *, ...) -> images, targets`.

images: float [B, H, W, C]. targets: float [B, K], each row a distribution over the
classes (one-hot, or smoothed), so that cross-entropy with it is the mixed loss.

Partners come from the batch that the function is given: one permutation and one lambda
for that batch, as published. On several devices that batch is the device's own share:
unlike an op's draw, this one depends on the number of devices. Given the same share
and the same key, the result is the same. Padded examples must not be in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from linseed.ranges import Positive
from linseed.trainer.data.augment.erase import box_mask


def unmixed(key, images, targets):
    """Leaves images and targets as they are; draws nothing."""
    return images, targets


def mixup(key, images, targets, *, alpha: Positive = 0.2):
    """lambda * own + (1 - lambda) * partner, images and targets alike, with lambda from Beta(alpha, alpha).

    Zhang et al. 2018 (arXiv:1710.09412); alpha is 0.2 there for ImageNet and 1 for CIFAR-10.
    """
    lambda_key, partner_key = jax.random.split(key)
    own = jax.random.beta(lambda_key, alpha, alpha, dtype=images.dtype)
    partner = jax.random.permutation(partner_key, len(images))
    return own * images + (1 - own) * jnp.take(images, partner, axis=0), own * targets + (1 - own) * jnp.take(
        targets, partner, axis=0
    )


def cutmix(key, images, targets, *, alpha: Positive = 1.0):
    """Pastes a box of each image's partner: 1 - lambda of the area, with lambda from Beta(alpha, alpha).

    Yun et al. 2019 (arXiv:1905.04899); alpha is 1 there. The box has the image's
    shape. Its centre is drawn from the whole image and what lies outside is cut off:
    targets are mixed by the share of the pixels that were in fact pasted. One box for
    the batch, as in their code.
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

    labels: int32 [B]; targets: float32 [B, num_classes], but for "none" the labels themselves.
    """
    if name == "none":
        return MIXING[name]
    return lambda key, images, labels: MIXING[name](key, images, jax.nn.one_hot(labels, num_classes), **kwargs)
