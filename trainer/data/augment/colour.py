"""Colour augmentations: each a deterministic op and its random twin `(key, image, *, ...)`.

Images are float32 [H, W, C] in [0, 1], C = 3 (RGB) or 1 (grey); shape and dtype are kept. Results are NOT clipped, so
ops compose without losing information. Definitions are those of Pillow's ImageEnhance and ImageOps and torchvision's
`adjust_*`, which clip and round to 8 bits after every op. A grey image has no saturation and no hue:
`adjust_saturation` and `adjust_hue` do not change it.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from linseed.ranges import Between, Fraction, NonNegative
from linseed.trainer.errors import DataError

Turns = Annotated[float, Between(0.0, 0.5)]


def luma(image):
    """The luma of an image, float [H, W, 1]: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    A single channel is its own luma. Raises DataError unless there are 1 or 3 channels.
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

    Pillow rounds the mean to a whole grey level out of 255; this does not.
    """
    return _blend(jnp.mean(luma(image)), image, factor)


def adjust_saturation(image, factor):
    """Blends with the luma of each pixel: 0 is the grey image, 1 the identity."""
    return _blend(luma(image), image, factor)


def adjust_hue(image, turns):
    """Rotates the hue of HSV by `turns` of the colour circle; whole turns are the identity.

    A pixel keeps its value, max(R, G, B), and its chroma, max - min. These two enter, never their quotient, so values
    outside [0, 1] work like any other. Source: A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.
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
    # Each channel's distance around the circle, in sixths, from the middle of the third where it is lowest.
    position = jnp.mod(sextant + 6.0 * turns + jnp.array([5.0, 3.0, 1.0], image.dtype), 6.0)
    return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)


def adjust_sharpness(image, factor):
    """Blends with the smoothed image: 0 is that blur, 1 the identity, above 1 sharpens.

    The filter weighs a pixel 5 and each of its eight neighbours 1, over 13. As in Pillow the outermost pixels are not
    blurred and stay unchanged.
    """
    height, width = image.shape[0] - 2, image.shape[1] - 2
    if height < 1 or width < 1:
        return image
    windows = [image[r : r + height, c : c + width] for r in range(3) for c in range(3)]
    smooth = (sum(windows) + 4.0 * windows[4]) / 13.0
    return image.at[1:-1, 1:-1].set(_blend(smooth, windows[4], factor))


def grayscale(image):
    """The luma in every channel."""
    return jnp.broadcast_to(luma(image), image.shape)


def invert(image):
    """The negative: `1 - image`."""
    return 1.0 - image


def solarize(image, threshold):
    """Inverts the values from `threshold` upwards; above 1 it is the identity on an image in [0, 1]."""
    return jnp.where(image >= threshold, 1.0 - image, image)


def posterize(image, bits):
    """Rounds to 8 bits and keeps the upper `bits`, an integer; 8 is the identity, without rounding."""
    dropped = jnp.maximum(8 - jnp.asarray(bits, jnp.int32), 0)
    levels = _levels(image)
    return jnp.where(dropped > 0, ((levels >> dropped) << dropped) / jnp.float32(255.0), image)


def autocontrast(image):
    """Stretches each channel to the full range [0, 1]; a constant channel stays unchanged."""
    low, high = jnp.min(image, axis=(0, 1)), jnp.max(image, axis=(0, 1))
    flat = high <= low
    return jnp.where(flat, image, (image - low) / jnp.where(flat, 1.0, high - low))


def equalize(image):
    """Flattens the histogram of each channel in 8 bits, with Pillow's integer table of levels.

    With n pixels, of which m have the highest level, level i becomes (s // 2 + number of pixels below i) // s, where s
    = (n - m) // 255. If s is 0, as for any image of fewer than 256 pixels, the channel stays unchanged.
    """
    channels = image.shape[-1]
    levels = jnp.clip(_levels(image), 0, 255)
    # The index of (level, channel) in a flat histogram: one index counts several times faster than two.
    places = levels * channels + jnp.arange(channels)
    histogram = (
        jnp.zeros(256 * channels, jnp.int32)
        .at[places.reshape(-1)]
        .add(1, mode="promise_in_bounds")
        .reshape(256, channels)
    )
    highest = jnp.take_along_axis(histogram, jnp.max(levels, axis=(0, 1))[None], axis=0)[0]
    step = (image.shape[0] * image.shape[1] - highest) // 255
    below = jnp.take((jnp.cumsum(histogram, axis=0) - histogram).reshape(-1), places, mode="clip")
    # Dividing integers as floats is faster; the half keeps every quotient away from the integers.
    flat = jnp.floor((step // 2 + below + 0.5) / jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(flat, 255.0) / 255.0, image)


def random_brightness(key, image, *, strength: NonNegative):
    """Applies `adjust_brightness` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_brightness(image, _draw_factor(key, image, strength))


def random_contrast(key, image, *, strength: NonNegative):
    """Applies `adjust_contrast` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_contrast(image, _draw_factor(key, image, strength))


def random_saturation(key, image, *, strength: NonNegative):
    """Applies `adjust_saturation` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_saturation(image, _draw_factor(key, image, strength))


def random_sharpness(key, image, *, strength: NonNegative):
    """Applies `adjust_sharpness` with a factor drawn from [max(0, 1 - strength), 1 + strength]."""
    return adjust_sharpness(image, _draw_factor(key, image, strength))


def random_hue(key, image, *, strength: Turns):
    """Applies `adjust_hue` with turns drawn from [-strength, strength]; 0.5 draws from the whole circle."""
    return adjust_hue(image, jax.random.uniform(key, (), image.dtype, -strength, strength))


def random_color_jitter(
    key, image, *, brightness: NonNegative, contrast: NonNegative, saturation: NonNegative, hue: Turns = 0.0
):
    """Applies random brightness, contrast, saturation and hue, in this order, drawn separately.

    torchvision's ColorJitter shuffles the order. Without clipping the first three commute exactly (all are linear, and
    saturation keeps the luma), so only the position of hue would matter. Under `vmap` a shuffle costs the work of every
    order. Here hue comes last.
    """
    keys = jax.random.split(key, 4)
    image = random_brightness(keys[0], image, strength=brightness)
    image = random_contrast(keys[1], image, strength=contrast)
    image = random_saturation(keys[2], image, strength=saturation)
    return random_hue(keys[3], image, strength=hue) if hue else image


def random_grayscale(key, image, *, probability: Fraction):
    """Applies `grayscale` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, grayscale(image), probability)


def random_invert(key, image, *, probability: Fraction):
    """Applies `invert` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, invert(image), probability)


def random_solarize(key, image, *, probability: Fraction, threshold: Fraction = 0.5):
    """Applies `solarize` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, solarize(image, threshold), probability)


def random_posterize(key, image, *, probability: Fraction, bits: Annotated[int, Between(1, 8)]):
    """Applies `posterize` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, posterize(image, bits), probability)


def random_autocontrast(key, image, *, probability: Fraction):
    """Applies `autocontrast` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, autocontrast(image), probability)


def random_equalize(key, image, *, probability: Fraction):
    """Applies `equalize` with the given probability; 0 never, 1 always."""
    return _sometimes(key, image, equalize(image), probability)


def _sometimes(key, image, changed, probability):
    return jnp.where(jax.random.bernoulli(key, probability), changed, image)


def _levels(image):
    """The nearest 8-bit levels, int32, 0..255 for values in [0, 1]."""
    return jnp.round(image * 255.0).astype(jnp.int32)


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
