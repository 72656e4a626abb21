"""Where a patch is in its image: rotations of queries and keys, and tables of positions at another size of images."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def rotary(grid: tuple[int, int], *, features: int, prefix: int, base: float = 100.0) -> np.ndarray:
    """Angles [prefix + H * W, features] by which `rotate` turns the features of a head, float64.

    grid: H and W in patches. The first quarter of the features is turned by the row, the second by the column, both on
    the scale from -1 to 1 from edge to edge, times 2 pi over the periods base^(i / quarter); the second half is turned
    like the first. The first `prefix` tokens are at no place and are not turned.
    Simeoni et al. 2025, "DINOv3", section 3.2. Raises ValueError for features that are no multiple of four.
    """
    if features % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4 features, not {features}: change heads")
    axes = [2 * (np.arange(size) + 0.5) / size - 1 for size in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = base ** (np.arange(features // 4) / (features // 4))
    angles = (2 * np.pi * places / periods).reshape(-1, features // 2)
    return np.pad(np.tile(angles, 2), ((prefix, 0), (0, 0)))


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns each pair of features (i, i + F / 2) by its angle: float [B, N, heads, F], [N, F] -> the same shape."""
    exact = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(function(angles)[:, None], exact) for function in (np.cos, np.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return (x * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


def resample(values: np.ndarray, shape: Sequence[int], *, prefix: int) -> np.ndarray:
    """A table of positions for square images of another size: float [1, N, D] -> [1, M, D], M that of `shape`.

    The first `prefix` positions belong to no patch and stay. The others are resized as an image is, bicubic (Keys 1981,
    a = -1/2), widened to the distance of the new pixels where there are fewer of them. `values` that are no such table,
    or not of square images, come back as they are.
    """
    if values.ndim != len(shape) or min(values.shape[1], shape[1]) <= prefix:
        return values
    old, new = (math.isqrt(count - prefix) for count in (values.shape[1], shape[1]))
    if (old**2 + prefix, new**2 + prefix) != (values.shape[1], shape[1]):
        return values
    table = values[:, prefix:].reshape(1, old, old, -1)
    table = jax.image.resize(table, (1, new, new, table.shape[-1]), "cubic", antialias=True)
    return np.concatenate([values[:, :prefix], np.reshape(table, (1, new**2, -1))], axis=1)
