"""Where an example stands in training, for the ops whose draw goes by that, and those ops.

An op whose first parameter is called `place` is handed the example's `Place` where others are handed a key.
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
    # 2^31 - 1 is no step, so that this is no step's key: see `experiment.build`.
    root = jax.random.fold_in(root, 2**31 - 1)
    return Place(jax.vmap(lambda index: jax.random.fold_in(root, index))(index), epoch)


def alternating_flip_lr(place, image):
    """Applies `flip_lr` in every other epoch: the first is drawn by image, evenly; two epochs show both sides.

    Jordan 2024 (arXiv:2404.00498, section 3.6).
    """
    first = jax.random.bernoulli(place.key)
    return jnp.where(first ^ (place.epoch % 2 == 1), flip_lr(image), image)
