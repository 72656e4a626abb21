"""Augmentations of colour: each a deterministic op and its random twin `(key, image, *, ...)`.

Images are float32 [H, W, C] in [0, 1], C = 3 (RGB) or 1 (grey); shape and dtype are
kept. Results are NOT clipped, so that ops compose without losing information.
Definitions are those of Pillow's ImageEnhance and torchvision's `adjust_*`, which
clip and round to 8 bits after every op. A grey image has no saturation and no hue:
`adjust_saturation` and `adjust_hue` are the identity on it.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from trainer.data.augment.parse import Between
from trainer.errors import DataError

Strength = Annotated[float, Between(0.0, math.inf)]
Turns = Annotated[float, Between(0.0, 0.5)]


def luma(image):
    """The grey of an image, float [H, W, 1]: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    One channel is its own luma. Raises DataError for other than 1 or 3 channels.
    """
    if _channels(image) == 1:
        return image
    # Written out, not a matrix product, which accelerators round to fewer bits.
    red, green, blue = jnp.split(image, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def adjust_brightness(image, factor):
    """Blends with black: `factor * image`. 0 is black, 1 the identity."""
    return factor * image


def adjust_contrast(image, factor):
    """Blends with the spatial mean of the luma: 0 is that uniform grey, 1 the identity.

    Pillow rounds the mean to a whole grey level, of 255; this does not.
    """
    return _blend(jnp.mean(luma(image)), image, factor)


def adjust_saturation(image, factor):
    """Blends with the luma of each pixel: 0 is the grey image, 1 the identity."""
    return _blend(luma(image), image, factor)


def adjust_hue(image, turns):
    """Rotates the hue of HSV by `turns` of the colour circle; whole turns are the identity.

    A pixel keeps its value, max(R, G, B), and its chroma, max - min. Only these two
    enter, never their quotient, so values outside [0, 1] are handled like any other.
    Source: A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    if _channels(image) == 1:
        return image
    red, green, blue = jnp.split(image, 3, axis=-1)
    value = jnp.max(image, axis=-1, keepdims=True)
    chroma = value - jnp.min(image, axis=-1, keepdims=True)
    divisor = jnp.where(chroma > 0, chroma, 1.0)  # grey: any hue will do
    sextant = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, (blue - red) / divisor + 2.0, (red - green) / divisor + 4.0),
    )
    # Each channel's distance round the circle, in sixths, from the middle of the third where it is lowest.
    position = jnp.mod(sextant + 6.0 * turns + jnp.array([5.0, 3.0, 1.0], image.dtype), 6.0)
    return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)


def random_brightness(key, image, *, strength: Strength):
    """Applies `adjust_brightness` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_brightness(image, _draw_factor(key, image, strength))


def random_contrast(key, image, *, strength: Strength):
    """Applies `adjust_contrast` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_contrast(image, _draw_factor(key, image, strength))


def random_saturation(key, image, *, strength: Strength):
    """Applies `adjust_saturation` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_saturation(image, _draw_factor(key, image, strength))


def random_hue(key, image, *, strength: Turns):
    """Applies `adjust_hue` with turns drawn from [-strength, strength]; 0.5 draws from the whole circle."""
    return adjust_hue(image, jax.random.uniform(key, (), image.dtype, -strength, strength))


def random_color_jitter(
    key, image, *, brightness: Strength, contrast: Strength, saturation: Strength, hue: Turns = 0.0
):
    """Applies random brightness, contrast, saturation and hue, in this order, each with its own draw.

    torchvision's ColorJitter shuffles the order. Without clipping in between, the
    first three commute exactly (all are linear, and saturation keeps the luma), so
    a shuffle of them would change nothing; only where hue stands among them would,
    and a shuffle costs every order's work under `vmap`. Hue comes last.
    """
    keys = jax.random.split(key, 4)
    image = random_brightness(keys[0], image, strength=brightness)
    image = random_contrast(keys[1], image, strength=contrast)
    image = random_saturation(keys[2], image, strength=saturation)
    return random_hue(keys[3], image, strength=hue) if hue else image


def _draw_factor(key, image, strength):
    return jax.random.uniform(key, (), image.dtype, max(0.0, 1.0 - strength), 1.0 + strength)


def _blend(base, image, factor):
    # Not base + factor * (image - base): this form is exact at factor 1.
    return factor * image + (1.0 - factor) * base


def _channels(image):
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"contrast, saturation and hue need images of 1 or 3 channels; these have {channels}")
    return channels
