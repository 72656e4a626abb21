"""Augmentations that move pixels: each a deterministic op and its random twin `(key, image, *, ...)`.

Images are float [H, W, C] in [0, 1], any C; shape and dtype are kept. Flips and `pad_crop` move whole pixels and are
exact. Every other move is a `warp.Warp`, and `warp.resample` reads the image once through any number of them. A
decorated `draw(key, shape, *, ...) -> Warp` is an op on its own. A chain collects the `draw`s of its ops, so
`rotate(15)|shear(0.1)|translate(0.1)` interpolates once.
"""

import functools
import inspect
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from linseed.ranges import Between, Fraction, NonNegative
from linseed.trainer.data.augment.warp import (
    Fill,
    cropping,
    lens,
    projection,
    resample,
    rotation,
    scaling,
    shearing,
    translation,
)
from linseed.trainer.errors import ConfigError

Aspect = Annotated[float, Between(1)]
Pixels = Annotated[int, Between(0)]


def _resampled(draw):
    """Makes an op `(key, image, *, ..., fill=0.0)` of `draw(key, shape, *, ...) -> Warp`, kept as `op.draw`."""

    @functools.wraps(draw)
    def op(key, image, *, fill=0.0, **arguments):
        return resample(image, [draw(key, image.shape, **arguments)], fill=fill)

    key, _, *arguments = inspect.signature(draw).parameters.values()
    image = inspect.Parameter("image", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    fill = inspect.Parameter("fill", inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=Fill)
    op.__signature__ = inspect.Signature([key, image, *arguments, fill])
    op.draw = draw
    return op


@_resampled
def random_rotate(key, shape, *, degrees: Annotated[float, Between(0.0, 180.0)]):
    """Rotates by an angle drawn from [-degrees, degrees]."""
    return rotation(_signed(key, degrees))


@_resampled
def random_translate(key, shape, *, fraction: Fraction):
    """Shifts each way by up to `fraction` of the width and of the height, drawn separately."""
    right, down = _signed(key, fraction, (2,))
    return translation(shape[1] * right, shape[0] * down)


@_resampled
def random_scale(key, shape, *, strength: NonNegative):
    """Scales by a factor drawn log-uniformly from [1 / (1 + strength), 1 + strength]."""
    factor = jnp.exp(_signed(key, math.log1p(strength)))
    return scaling(factor, factor)


@_resampled
def random_stretch(key, shape, *, strength: NonNegative):
    """Changes width : height by a factor drawn as in `random_scale`, and keeps the area."""
    factor = jnp.exp(_signed(key, math.log1p(strength) / 2))
    return scaling(factor, 1.0 / factor)


@_resampled
def random_shear(key, shape, *, strength: NonNegative):
    """Shears about the centre along both axes, each by its own slope drawn from [-strength, strength]."""
    return shearing(*_signed(key, strength, (2,)))


@_resampled
def random_lens_distortion(
    key,
    shape,
    *,
    strength: Annotated[float, Between(0.0, 0.3)],
    kind: Literal["barrel", "both", "pincushion"] = "both",
):
    """Applies `lens`, k drawn from [-strength, strength]; "barrel" keeps k >= 0, "pincushion" k <= 0.

    Below k = -1/3 a pincushion folds over inside the image, hence the limit.
    """
    low = 0.0 if kind == "barrel" else -strength
    high = 0.0 if kind == "pincushion" else strength
    return lens(jax.random.uniform(key, (), jnp.float32, low, high))


@_resampled
def random_perspective(key, shape, *, strength: Fraction):
    """Moves each corner inwards by up to `strength / 2` of the width and of the height, drawn separately.

    Like torchvision's RandomPerspective with `p=1` and `distortion_scale=strength`, which moves by whole pixels.
    """
    inwards = jax.random.uniform(key, (4, 2), jnp.float32, 0.0, strength / 2)
    signs = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return projection(signs * (0.5 - inwards) * jnp.array([shape[1], shape[0]], jnp.float32), shape=shape)


@_resampled
def random_resized_crop(key, shape, *, min_area: Annotated[float, Between(0.01, 1.0)], max_aspect: Aspect = 4 / 3):
    """Crops a window and stretches it to the full image: the "Inception" crop.

    Its share of the area is drawn from [min_area, 1], width : height log-uniformly from [1 / max_aspect, max_aspect].
    As in torchvision, the first of ten draws that fits is used, otherwise the largest centred window of such a shape.
    Here the window may lie between pixels. 0.08 and 4/3 are from Szegedy et al. 2015 (arXiv:1409.4842, section 6).
    """
    size_key, place_key = jax.random.split(key)
    height, width, fits = draw_box(size_key, shape, areas=(min_area, 1.0), max_aspect=max_aspect)
    height = jnp.where(fits, height, min(shape[0], shape[1] * max_aspect))
    width = jnp.where(fits, width, min(shape[1], shape[0] * max_aspect))
    place = jnp.where(fits, jax.random.uniform(place_key, (2,)), 0.5)
    top, left = place[0] * (shape[0] - height), place[1] * (shape[1] - width)
    return cropping(top, left, height, width, shape=shape)


def flip_lr(image):
    """Mirrors left and right: column `w` goes to column `W - 1 - w`."""
    return image[:, ::-1]


def random_flip_lr(key, image, *, probability: Fraction):
    """Applies `flip_lr` with the given probability; 0 never, 1 always."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_lr(image), image)


def flip_ud(image):
    """Mirrors top and bottom: row `h` goes to row `H - 1 - h`."""
    return image[::-1]


def random_flip_ud(key, image, *, probability: Fraction):
    """Applies `flip_ud` with the given probability; 0 never, 1 always."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_ud(image), image)


def pad_crop(image, offset, *, padding, mode):
    """Pads each side by `padding` pixels and crops a window of the old size at `offset`.

    `offset` is int [2], row and column, each in 0..2 * padding; `(padding, padding)` is the identity. `mode` is
    "constant" (zeros) or "reflect" (mirrored, the edge pixel not repeated). Raises ConfigError unless `padding` is
    smaller than both sides: otherwise there is nothing to reflect, and a constant window could miss the image.
    """
    height, width, _ = image.shape
    if padding >= min(height, width):
        raise ConfigError(f"pad_crop({padding}): padding must be smaller than the image, which is {height}x{width}")
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def random_pad_crop(key, image, *, padding: Pixels, mode: Literal["constant", "reflect"] = "constant"):
    """Applies `pad_crop` at an offset drawn uniformly from the (2 * padding + 1)^2 windows.

    Zeros are standard: 4 pixels on CIFAR in He et al. 2016 (arXiv:1512.03385, section 4.2). Here they are black, as
    padding comes before normalisation, like in torchvision's RandomCrop. Wide ResNets (Zagoruyko and Komodakis,
    arXiv:1605.07146) reflect.
    """
    offset = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return pad_crop(image, offset, padding=padding, mode=mode)


def draw_box(key, shape, *, areas, max_aspect):
    """Height and width in pixels of the first of ten drawn boxes that fits into the image, and whether one did."""
    area_key, aspect_key = jax.random.split(key)
    area = shape[0] * shape[1] * jax.random.uniform(area_key, (10,), jnp.float32, *areas)
    aspect = jnp.exp(_signed(aspect_key, math.log(max_aspect), (10,)))
    heights, widths = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    fits = (heights <= shape[0]) & (widths <= shape[1])
    first = jnp.argmax(fits)
    return heights[first], widths[first], fits[first]


def _signed(key, strength, shape=()):
    return jax.random.uniform(key, shape, jnp.float32, -strength, strength)
