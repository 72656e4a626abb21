"""Coordinate maps of an image, and one bilinear resampling through any number of them."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from linseed.ranges import Fraction

Fill = Fraction | Literal["edge", "reflect"]


class Warp(NamedTuple):
    """Maps an output point to the input point to read: through `matrix`, then through the radial term.

    Points are (x, y) in pixels from the image's centre, x to the right and y down; pixel centres lie at half-integers,
    as in Pillow. `matrix` is float [3, 3] on (x, y, 1). `radial`, a scalar or None, is the k of r_in = r_out (1 + k
    r_out^2), radii in units of half the image's diagonal.
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
    """The warp with x_in = x + `x` y_mid and y_in = y_mid = y + `y` x: it keeps areas for any two strengths."""
    return Warp(_matrix([[1.0 + x * y, x, 0.0], [y, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def lens(k):
    """The warp of a lens: k > 0 is barrel distortion (corners move in), k < 0 pincushion, 0 the identity.

    One term of Brown's model (D. C. Brown, "Decentering distortion of lenses", 1966), output to input. A pincushion
    would fold over where r_out^2 > 1 / (-3 k); beyond that the magnification stays constant.
    """
    return Warp(jnp.eye(3), k)


def cropping(top, left, height, width, *, shape):
    """The warp that stretches a window, in pixels, also fractional ones, to the full image."""
    across, down = width / shape[1], height / shape[0]
    x, y = left + (width - shape[1]) / 2, top + (height - shape[0]) / 2
    return Warp(_matrix([[across, 0.0, x], [0.0, down, y], [0.0, 0.0, 1.0]]))


def projection(corners, *, shape):
    """The warp that moves the image's corners to `corners`, float [4, 2]: convex, clockwise from top left.

    Points (x, y) as in `Warp`. It inverts P. S. Heckbert's projective map of the unit square to a quadrilateral
    ("Fundamentals of texture mapping", 1989, section 2.2.3).
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


def resample(image, warps, *, fill, interpolation="bilinear"):
    """Applies `warps` in order and reads the image once, by `INTERPOLATIONS[interpolation]`.

    `fill` is the value outside the image: a grey level in [0, 1], "edge" (the nearest pixel) or "reflect" (mirrored,
    the edge pixel not repeated). As in Pillow, inside extends to the outer border of the edge pixels. Pixels that one
    warp moves out and the next moves back are kept.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + (0.5 - height / 2), jnp.arange(width) + (0.5 - width / 2), indexing="ij")
    w = jnp.ones_like(x)
    for warp in reversed(warps):  # from output to input, so the last op comes first
        # Written out, not a matrix product, which accelerators round to fewer bits.
        x, y, w = (row[0] * x + row[1] * y + row[2] * w for row in warp.matrix)
        if warp.radial is not None:
            x, y, w = _dehomogenise(x, y, w)
            radius2 = (x * x + y * y) / (height * height / 4 + width * width / 4)
            fold = jnp.where(warp.radial < 0, 1.0 / jnp.maximum(-3.0 * warp.radial, 1e-6), jnp.inf)
            magnify = 1.0 + warp.radial * jnp.minimum(radius2, fold)
            x, y = x * magnify, y * magnify
    x, y, _ = _dehomogenise(x, y, w)
    return _read(image, y + (height / 2 - 0.5), x + (width / 2 - 0.5), fill, INTERPOLATIONS[interpolation])


def _dehomogenise(x, y, w):
    # Points behind the eye of a projection (w <= 0) are read from far outside.
    w = jnp.maximum(w, 1e-6)
    return x / w, y / w, jnp.ones_like(w)


def _read(image, rows, columns, fill, interpolate):
    height, width, channels = image.shape
    inside = (rows >= -0.5) & (rows < height - 0.5) & (columns >= -0.5) & (columns < width - 0.5)
    if fill == "reflect":
        rows, columns = _mirror(rows, height), _mirror(columns, width)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    pixels = jnp.reshape(image, (height * width, channels))

    def pixel(row, column):
        row, column = jnp.minimum(row, height - 1), jnp.minimum(column, width - 1)
        return jnp.take(pixels, row.astype(jnp.int32) * width + column.astype(jnp.int32), axis=0, mode="clip")

    out = interpolate(pixel, rows, columns)
    return out if isinstance(fill, str) else jnp.where(inside[..., None], out, jnp.asarray(fill, image.dtype))


def _bilinear(pixel, rows, columns):
    top, left = jnp.floor(rows), jnp.floor(columns)
    below, beside = (rows - top)[..., None], (columns - left)[..., None]
    upper = (1 - beside) * pixel(top, left) + beside * pixel(top, left + 1)
    lower = (1 - beside) * pixel(top + 1, left) + beside * pixel(top + 1, left + 1)
    return (1 - below) * upper + below * lower


def _nearest(pixel, rows, columns):
    return pixel(jnp.floor(rows + 0.5), jnp.floor(columns + 0.5))


INTERPOLATIONS = {"bilinear": _bilinear, "nearest": _nearest}


def _mirror(position, size):
    period = max(2 * (size - 1), 1)
    folded = jnp.mod(position, period)
    return jnp.minimum(folded, period - folded)


def _matrix(rows):
    return jnp.stack([jnp.stack([jnp.asarray(item, jnp.float32) for item in row]) for row in rows])


def _determinant(one, other):
    return one[0] * other[1] - one[1] * other[0]
