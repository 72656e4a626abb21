"""Augmentations that hide pixels: `(key, image, *, ...)`, float [H, W, C] in [0, 1] to the same."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from linseed.ranges import Between, Fraction
from linseed.trainer.data.augment.geometry import Aspect, Pixels, draw_box


def box_mask(top, left, height, width, *, shape):
    """True inside a box of whole pixels, bool [H, W, 1]; parts outside the image are cut off."""
    rows, columns = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def random_cutout(key, image, *, size: Pixels, fill: Fraction = 0.0):
    """Hides a square of `size` pixels a side, centred on a random pixel of the image.

    DeVries and Taylor 2017 (arXiv:1708.04552): at the border only part of the square is in the image. They fill with 0
    after normalisation, the mean. Here the image is not normalised yet, so 0 is black.
    """
    corner = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2])) - size // 2
    hidden = box_mask(corner[0], corner[1], size, size, shape=image.shape)
    return jnp.where(hidden, jnp.asarray(fill, image.dtype), image)


def random_erasing(
    key,
    image,
    *,
    probability: Fraction,
    max_area: Annotated[float, Between(0.02, 1.0)] = 0.4,
    max_aspect: Aspect = 10 / 3,
    fill: Fraction | Literal["noise"] = "noise",
):
    """Hides a rectangle with the given probability, under a grey level or uniform noise in [0, 1].

    Its share of the area is drawn from [0.02, max_area], height : width, here log-uniformly, from [1 / max_aspect,
    max_aspect]. Uses the first of ten draws that fits; if none does, nothing is hidden. The defaults are those of Zhong
    et al. 2017 (arXiv:1708.04896, section 4.1), who draw until one fits.
    """
    apply_key, size_key, place_key, noise_key = jax.random.split(key, 4)
    height, width, fits = draw_box(size_key, image.shape, areas=(0.02, max_area), max_aspect=max_aspect)
    box = jnp.round(jnp.stack([height, width])).astype(jnp.int32)
    place = jax.random.randint(place_key, (2,), 0, jnp.array(image.shape[:2]) - box + 1)
    hidden = box_mask(place[0], place[1], box[0], box[1], shape=image.shape)
    level = jax.random.uniform(noise_key, image.shape, image.dtype) if fill == "noise" else fill
    return jnp.where(hidden & fits & jax.random.bernoulli(apply_key, probability), level, image)
