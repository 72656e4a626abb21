"""Ops whose draw depends on the example and its epoch, and the `Place` that they get instead of a key.

An op is handed a `Place` if its first parameter is called `place`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linseed.trainer.data.augment.geometry import flip_lr


class Place(NamedTuple):
    """key: the example's own typed key, the same in every epoch. epoch: int32, how often it was seen before."""

    key: jax.Array
    epoch: jax.Array


def places(root: jax.Array, index: jax.Array, epoch: jax.Array) -> Place:
    """The Place of each example, [B]: its key from `root` and its `index` in the train split, int32 [B]."""
    # No step has the number 2^31 - 1, so no step uses this key: see `experiment.build`.
    root = jax.random.fold_in(root, 2**31 - 1)
    return Place(jax.vmap(lambda index: jax.random.fold_in(root, index))(index), epoch)


def alternating_flip_lr(place, image):
    """Applies `flip_lr` in every other epoch. The first one is random per image, so two epochs show both sides.

    Jordan 2024 (arXiv:2404.00498, section 3.6).
    """
    first = jax.random.bernoulli(place.key)
    return jnp.where(first ^ (place.epoch % 2 == 1), flip_lr(image), image)
