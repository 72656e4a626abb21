"""Augmentations that move pixels: each a deterministic op and its random twin `(key, image, *, ...)`.

Images are float [H, W, C] in [0, 1], any C; shape and dtype are kept. Flips and
`pad_crop` move whole pixels and are exact. Every other move is a `Warp`, and
`resample` reads the image once through any number of them: a decorated
`draw(key, shape, *, ...) -> Warp` is an op on its own, and its `draw` is what a chain
collects, so that `rotate(15)|shear(0.1)|translate(0.1)` interpolates once.
"""

import functools
import inspect
import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from trainer.data.augment.parse import Between
from trainer.errors import ConfigError

Probability = Annotated[float, Between(0.0, 1.0)]
Fraction = Annotated[float, Between(0.0, 1.0)]
Strength = Annotated[float, Between(0.0, math.inf)]
Aspect = Annotated[float, Between(1.0, math.inf)]
Pixels = Annotated[int, Between(0, math.inf)]
Grey = Annotated[float, Between(0.0, 1.0)]
Fill = Grey | Literal["edge", "reflect"]


class Warp(NamedTuple):
    """Where an output point is read in the input: through `matrix`, then through the radial term.

    Points are (x, y) in pixels from the centre of the image, x to the right and y
    down; pixel centres lie at half-integers, as in Pillow. `matrix` is float [3, 3] on
    (x, y, 1). `radial`, a scalar or None, is the k of
    r_in = r_out (1 + k r_out^2), radii in units of half the image's diagonal.
    """

    matrix: jax.Array
    radial: jax.Array | float | None = None


def rotation(degrees):
    """The warp that turns the image counter-clockwise about its centre."""
    angle = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return Warp(_matrix([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]))


def translation(right, down):
    """The warp that shifts the image by pixels, to the right and down."""
    return Warp(_matrix([[1.0, 0.0, -right], [0.0, 1.0, -down], [0.0, 0.0, 1.0]]))


def scaling(across, down):
    """The warp that makes the image `across` times as wide and `down` times as high, about its centre."""
    return Warp(_matrix([[1.0 / across, 0.0, 0.0], [0.0, 1.0 / down, 0.0], [0.0, 0.0, 1.0]]))


def shearing(x, y):
    """The warp with x_in = x + `x` y_mid and y_in = y_mid = y + `y` x: it keeps areas, whatever the two strengths."""
    return Warp(_matrix([[1.0 + x * y, x, 0.0], [y, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def lens(k):
    """The warp of a lens: k > 0 is barrel distortion (corners drawn in), k < 0 pincushion, 0 the identity.

    One term of Brown's model (D. C. Brown, "Decentering distortion of lenses",
    1966), output to input. A pincushion would fold over where r_out^2 > 1 / (-3 k);
    from there on it magnifies evenly.
    """
    return Warp(jnp.eye(3), k)


def cropping(top, left, height, width, *, shape):
    """The warp that stretches a window, in pixels and not necessarily whole ones, to the full image."""
    across, down = width / shape[1], height / shape[0]
    x, y = left + (width - shape[1]) / 2, top + (height - shape[0]) / 2
    return Warp(_matrix([[across, 0.0, x], [0.0, down, y], [0.0, 0.0, 1.0]]))


def projection(corners, *, shape):
    """The warp that moves the image's corners to `corners`, float [4, 2]: convex, clockwise from top left.

    Points (x, y) as in `Warp`. The projective map of the unit square to a quadrilateral
    is P. S. Heckbert's, "Fundamentals of texture mapping", 1989, section 2.2.3; this is its inverse.
    """
    first, second, third, fourth = corners
    side, other, surplus = second - third, fourth - third, first - second + third - fourth
    area = _determinant(side, other)
    g, h = _determinant(surplus, other) / area, _determinant(side, surplus) / area
    # The columns of the forward matrix; their cross products are the rows of its inverse, times the determinant.
    columns = [
        jnp.append(second - first + g * second, g),
        jnp.append(fourth - first + h * fourth, h),
        jnp.append(first, 1.0),
    ]
    rows = [jnp.cross(columns[i - 2], columns[i - 1]) for i in range(3)]
    across, down, bottom = jnp.stack(rows) / jnp.sum(columns[0] * rows[0])
    # From the unit square to pixels from the centre.
    return Warp(jnp.stack([shape[1] * (across - 0.5 * bottom), shape[0] * (down - 0.5 * bottom), bottom]))


def resample(image, warps, *, fill):
    """Applies `warps` in their order and reads the image once, bilinearly.

    `fill` is what lies outside the image: a grey level in [0, 1], "edge" (the nearest
    pixel) or "reflect" (mirrored, the edge pixel not repeated). As in Pillow, a point
    counts as inside up to the outer border of the edge pixels. Pixels that one warp
    moves out of sight and the next moves back are still there.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + (0.5 - height / 2), jnp.arange(width) + (0.5 - width / 2), indexing="ij")
    w = jnp.ones_like(x)
    for warp in reversed(warps):  # output to input: the last op is the first on the way back
        # Written out, not a matrix product, which accelerators round to fewer bits.
        x, y, w = (row[0] * x + row[1] * y + row[2] * w for row in warp.matrix)
        if warp.radial is not None:
            x, y, w = _dehomogenise(x, y, w)
            radius2 = (x * x + y * y) / (height * height / 4 + width * width / 4)
            fold = jnp.where(warp.radial < 0, 1.0 / jnp.maximum(-3.0 * warp.radial, 1e-6), jnp.inf)
            magnify = 1.0 + warp.radial * jnp.minimum(radius2, fold)
            x, y = x * magnify, y * magnify
    x, y, _ = _dehomogenise(x, y, w)
    return _interpolate(image, y + (height / 2 - 0.5), x + (width / 2 - 0.5), fill)


def _dehomogenise(x, y, w):
    # What lies behind the eye of a projection (w <= 0) is read from far outside.
    w = jnp.maximum(w, 1e-6)
    return x / w, y / w, jnp.ones_like(w)


def _interpolate(image, rows, columns, fill):
    height, width, channels = image.shape
    inside = (rows >= -0.5) & (rows < height - 0.5) & (columns >= -0.5) & (columns < width - 0.5)
    if fill == "reflect":
        rows, columns = _mirror(rows, height), _mirror(columns, width)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    top, left = jnp.floor(rows), jnp.floor(columns)
    below, beside = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    pixels = jnp.reshape(image, (height * width, channels))

    def read(row, column):
        return jnp.take(pixels, row * width + column, axis=0, mode="clip")

    upper = (1 - beside) * read(top, left) + beside * read(top, right)
    lower = (1 - beside) * read(bottom, left) + beside * read(bottom, right)
    out = (1 - below) * upper + below * lower
    return out if isinstance(fill, str) else jnp.where(inside[..., None], out, jnp.asarray(fill, image.dtype))


def _mirror(position, size):
    period = max(2 * (size - 1), 1)
    folded = jnp.mod(position, period)
    return jnp.minimum(folded, period - folded)


def _matrix(rows):
    return jnp.stack([jnp.stack([jnp.asarray(item, jnp.float32) for item in row]) for row in rows])


def _determinant(one, other):
    return one[0] * other[1] - one[1] * other[0]


def _resampled(draw):
    """The op `(key, image, *, ..., fill=0.0)` of a `draw(key, shape, *, ...) -> Warp`, kept as `op.draw`."""

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
    """Turns by an angle drawn from [-degrees, degrees]."""
    return rotation(_signed(key, degrees))


@_resampled
def random_translate(key, shape, *, fraction: Fraction):
    """Shifts by up to `fraction` of the width and of the height, each way, each with its own draw."""
    right, down = _signed(key, fraction, (2,))
    return translation(shape[1] * right, shape[0] * down)


@_resampled
def random_scale(key, shape, *, strength: Strength):
    """Scales by a factor drawn from [1 / (1 + strength), 1 + strength], evenly in its logarithm."""
    factor = jnp.exp(_signed(key, math.log1p(strength)))
    return scaling(factor, factor)


@_resampled
def random_stretch(key, shape, *, strength: Strength):
    """Changes width : height by a factor drawn as in `random_scale`, and keeps the area."""
    factor = jnp.exp(_signed(key, math.log1p(strength) / 2))
    return scaling(factor, 1.0 / factor)


@_resampled
def random_shear(key, shape, *, strength: Strength):
    """Shears along both axes, each by a slope drawn from [-strength, strength]."""
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
    """Moves each corner inwards by up to `strength / 2` of the width and of the height, each with its own draw.

    As torchvision's RandomPerspective with `p=1` and `distortion_scale=strength`, which moves by whole pixels.
    """
    inwards = jax.random.uniform(key, (4, 2), jnp.float32, 0.0, strength / 2)
    signs = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return projection(signs * (0.5 - inwards) * jnp.array([shape[1], shape[0]], jnp.float32), shape=shape)


@_resampled
def random_resized_crop(key, shape, *, min_area: Annotated[float, Between(0.01, 1.0)], max_aspect: Aspect = 4 / 3):
    """Cuts a window and stretches it to the full image: the "Inception" crop.

    Its share of the area is drawn from [min_area, 1], width : height from
    [1 / max_aspect, max_aspect] evenly in its logarithm. As in torchvision, the first of
    ten draws that fits is taken, else the largest centred window of such a shape;
    the window does not lie on whole pixels here. 0.08 and 4/3 are Szegedy et al. 2015
    (arXiv:1409.4842, section 6).
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


def random_flip_lr(key, image, *, probability: Probability):
    """Applies `flip_lr` with the given probability; 0 never, 1 always."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_lr(image), image)


def flip_ud(image):
    """Mirrors top and bottom: row `h` goes to row `H - 1 - h`."""
    return image[::-1]


def random_flip_ud(key, image, *, probability: Probability):
    """Applies `flip_ud` with the given probability; 0 never, 1 always."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_ud(image), image)


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


def draw_box(key, shape, *, areas, max_aspect):
    """Height and width in pixels of the first of ten drawn boxes that fits in the image, and whether one did."""
    area_key, aspect_key = jax.random.split(key)
    area = shape[0] * shape[1] * jax.random.uniform(area_key, (10,), jnp.float32, *areas)
    aspect = jnp.exp(_signed(aspect_key, math.log(max_aspect), (10,)))
    heights, widths = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    fits = (heights <= shape[0]) & (widths <= shape[1])
    first = jnp.argmax(fits)
    return heights[first], widths[first], fits[first]


def _signed(key, strength, shape=()):
    return jax.random.uniform(key, shape, jnp.float32, -strength, strength)
