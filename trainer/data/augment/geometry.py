"""Augmentations that move pixels: each a deterministic op and its random twin `(key, image, *, ...)`.

Images are float [H, W, C] in [0, 1], any C; shape and dtype are kept.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from trainer.data.augment.parse import Between
from trainer.errors import ConfigError

Probability = Annotated[float, Between(0.0, 1.0)]
Pixels = Annotated[int, Between(0, math.inf)]


def flip_lr(image):
    """Mirrors left and right: column `w` goes to column `W - 1 - w`."""
    return image[:, ::-1]


def random_flip_lr(key, image, *, probability: Probability):
    """Applies `flip_lr` with the given probability; 0 never, 1 always."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_lr(image), image)


def pad_crop(image, offset, *, padding, mode):
    """Pads each side by `padding` pixels and cuts the window of the old size at `offset`.

    `offset` is int [2], row and column, each in 0..2 * padding; `(padding, padding)`
    is the identity. `mode` is "constant" (zeros) or "reflect" (mirrored, the edge
    pixel not repeated). Raises ConfigError where `padding` is not smaller than both
    sides: there is nothing to reflect, and a constant window could hold no image.
    """
    height, width, _ = image.shape
    if padding >= min(height, width):
        raise ConfigError(f"pad_crop({padding}): padding must be smaller than the image, which is {height}x{width}")
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def random_pad_crop(key, image, *, padding: Pixels, mode: Literal["constant", "reflect"] = "constant"):
    """Applies `pad_crop` at an offset drawn uniformly from the (2 * padding + 1)^2 windows.

    Zeros are the field's standard: 4 pixels on CIFAR in He et al. 2016
    (arXiv:1512.03385, section 4.2). Here they are black, padded before the image is
    normalised, as torchvision's RandomCrop does. Wide ResNets (Zagoruyko and
    Komodakis, arXiv:1605.07146) reflect.
    """
    offset = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return pad_crop(image, offset, padding=padding, mode=mode)
