"""Initial weights that are taken from the training images: `DATA_INITS`.

    data_init = make_data_init("whiten", images=images, path="stem")
    params = data_init(params)

Part of a model's initialisation, so that the optimiser's state starts from it too. What is whitened need not be frozen;
a rule does that: `"stem/kernel: frozen"`.
"""

import functools
from collections.abc import Callable, Iterator

import flax
import jax.numpy as jnp
import numpy as np

from linseed.ranges import Count, Positive
from linseed.trainer.errors import ConfigError, unknown_name

_IMAGES_AT_ONCE = 250


def _none(images):
    return lambda params: params


def _whiten(images, *, path: str = "stem", examples: Count = 5000, eps: Positive = 5e-4):
    # The kernel of the convolution at `path` becomes `whitening_kernel` of `examples` train images, evenly spaced.
    # Jordan 2024's values.
    @functools.cache
    def kernel(height, width):
        return whitening_kernel(images(examples), height=height, width=width, eps=eps)

    def whiten(params):
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        name = f"{path}/kernel"
        convolutions = [key.removesuffix("/kernel") for key, leaf in flat.items() if leaf.ndim == 4]
        if path not in convolutions:
            raise ConfigError(unknown_name("config.data_init.path", path, convolutions))
        height, width, channels, features = flat[name].shape
        if features != 2 * height * width * channels:
            raise ConfigError(
                f"config.data_init 'whiten': {path} has {features} features; it needs {2 * height * width * channels}, "
                f"two for each number of a {height}x{width}x{channels} patch"
            )
        return flax.traverse_util.unflatten_dict({**flat, name: jnp.asarray(kernel(height, width))}, sep="/")

    return whiten


# (images, *, parameters of the config) -> (params -> params). images: count -> an iterator over so many normalised
# train images, or all where there are fewer, float32 [n, H, W, C] at a time.
DATA_INITS = {"none": _none, "whiten": _whiten}


def make_data_init(name: str, *, images: Callable[[int], Iterator[np.ndarray]], **kwargs) -> Callable:
    """`data_init(params) -> params`, pure and traceable. images, kwargs: see `DATA_INITS`.

    `data_init` raises ConfigError where the params do not suit.
    """
    return DATA_INITS[name](images, **kwargs)


def spread(images: np.ndarray, *, count: int, normalize: Callable) -> Iterator[np.ndarray]:
    """`count` of uint8 [N, H, W, C], evenly spaced since folders come class by class, normalised, a few at a time."""
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64)
    for start in range(0, len(places), _IMAGES_AT_ONCE):
        yield normalize(images[places[start : start + _IMAGES_AT_ONCE]].astype(np.float32) / 255)


def whitening_kernel(images: Iterator[np.ndarray], *, height: int, width: int, eps: float) -> np.ndarray:
    """float32 [height, width, C, 2 n], n = height width C, whose first n outputs on these images are white.

    The patches' second moment is V diag(l) V^T; output i is v_i . patch / sqrt(l_i + eps), by ascending l, and output
    n + i its negative, for activations that pass one sign. Page 2018, "How to train your ResNet"; Jordan 2024.
    """
    total, count = 0.0, 0
    for part in images:
        windows = np.lib.stride_tricks.sliding_window_view(part, (height, width), axis=(1, 2))  # [n, y, x, C, h, w]
        patches = np.moveaxis(windows, 3, -1).reshape(-1, height * width * part.shape[-1]).astype(np.float64)
        total, count = total + patches.T @ patches, count + len(patches)
    values, vectors = np.linalg.eigh(total / count)
    white = vectors / np.sqrt(values + eps)
    kernel = np.concatenate([white, -white], axis=1)
    return kernel.reshape(height, width, -1, kernel.shape[1]).astype(np.float32)
