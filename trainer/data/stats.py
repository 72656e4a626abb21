"""Normalisation with the statistics of the train split in use.

The statistics come from the images that are trained on, never from another data set, validation or test. They are
stored with the run, next to a fingerprint of these images. Lazy images are sampled: `SAMPLE` of them, drawn without
replacement with a fixed seed and read in parts.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError

# Warn if a config's constants differ from the data's own by more than this, on the 0..1 scale.
TOLERANCE = 0.01

PRETRAINED = "pretrained"  # a name beside those of NORMALIZERS: `mean` and `std` are those of weights

SAMPLE = 10_000
_IMAGES_PER_READ = 256


def fingerprint(*splits: Split) -> str:
    """sha256 of the shapes, pixels and labels of `splits`.

    For lazy images it hashes file names and sizes instead of pixels. So it misses a file replaced by another of the
    same name and size.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr((split.images.shape, split.labels.shape)).encode())
        lazy = isinstance(split.images, LazyImages)
        digest.update(split.images.identity().encode() if lazy else np.ascontiguousarray(split.images))
        digest.update(np.ascontiguousarray(split.labels))
    return digest.hexdigest()


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel mean and standard deviation of uint8 [N, H, W, C], float64 [C], on the 0..1 scale.

    Exact: computed from the histogram of the 256 pixel values.
    """
    values = np.arange(256) / 255.0
    channels = range(images.shape[-1])
    counts = sum(
        np.stack([np.bincount(some[..., c].ravel(), minlength=256) for c in channels]) for some in _parts(images)
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
    return mean, std


def _none(images):
    return {"mean": np.zeros(images.shape[-1]), "std": np.ones(images.shape[-1])}


def _channel_mean_std(images):
    mean, std = channel_moments(images)
    return {"mean": mean, "std": np.maximum(std, 1 / 255)}  # centre a flat channel, do not divide it by zero


def _channel_mean(images):
    mean, _ = channel_moments(images)
    return {"mean": mean, "std": np.ones(images.shape[-1])}


def _mean_image(images):
    # The lecture's H x W x C mean, on the 0..1 scale; subtracted per pixel, after augmentation has moved the image.
    total, count = 0, 0
    for some in _parts(images):
        total, count = total + some.sum(axis=0, dtype=np.uint64), count + len(some)
    return {"mean": total / (255.0 * count), "std": np.ones(images.shape[-1])}


def _parts(images) -> Iterator[np.ndarray]:
    """An array as a whole; of lazy images the good ones in the sample, part by part."""
    if not isinstance(images, LazyImages):
        yield images
        return
    sample = images.take(np.sort(np.random.default_rng(0).permutation(len(images))[:SAMPLE]))
    for start in range(0, len(sample), _IMAGES_PER_READ):
        some, good = sample.read_good(slice(start, start + _IMAGES_PER_READ))
        yield some[good]


NORMALIZERS = {
    "channel_mean": _channel_mean,
    "channel_mean_std": _channel_mean_std,
    "mean_image": _mean_image,
    "none": _none,
}


def statistics(
    split: Split,
    name: str,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    cache: Path,
) -> dict[str, np.ndarray]:
    """`mean` and `std` for `NORMALIZERS[name]`, on the 0..1 scale, computed from `split` or read from `cache`.

    For PRETRAINED they are the given ones, for three channels; images of other channels take their mean.

    cache: a JSON file, used if it is for `name` and these images of `split`, otherwise rewritten. Non-empty `mean` and
    `std` of the config replace the computed ones; a warning reports any that are further than `TOLERANCE` from the
    data's own. Raises ConfigError for constants that do not match the channels.
    """
    if name == PRETRAINED:
        return _of_weights(mean, std, channels=split.images.shape[-1])
    computed = _cached(split, name, cache)
    if not mean and not std:
        return computed
    channels = split.images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"data.mean and data.std need {channels} numbers each, one per channel; () uses the data's")
    given = {"mean": np.array(mean, np.float64), "std": np.array(std, np.float64)}
    for key, value in given.items():
        if np.abs(value - computed[key]).max() > TOLERANCE:
            logging.getLogger(__name__).warning(
                "data.%s=%s is not the train split's %s; set it to () to use the data's own",
                key,
                np.round(value, 4).tolist(),
                np.round(computed[key], 4).tolist(),
            )
    return given


def _of_weights(mean, std, *, channels):
    """Those of RGB, given; for other channels their mean."""
    if not len(mean) == len(std) == 3:
        raise ConfigError(
            "config.data.normalize 'pretrained' takes data.mean and data.std from config.pretrained; set it"
        )
    given = {"mean": np.array(mean, np.float64), "std": np.array(std, np.float64)}
    return given if channels == 3 else {key: np.full(channels, values.mean()) for key, values in given.items()}


def _cached(split: Split, name: str, cache: Path) -> dict[str, np.ndarray]:
    marks = {"name": name, "fingerprint": fingerprint(split)}
    # Checksummed: a digit that changed on disk would change every image that the network sees.
    stored = checksum.loads(files.read(cache) or b"") or {}
    if all(stored.get(key) == value for key, value in marks.items()):
        return {key: np.array(stored[key]) for key in ("mean", "std")}
    computed = NORMALIZERS[name](split.images)
    record = {**marks, **{key: value.tolist() for key, value in computed.items()}}
    files.write(cache, json.dumps(checksum.seal(record)))
    return computed


def make_normalize(stats: dict[str, np.ndarray]) -> Callable:
    """`normalize(images)`: (images - mean) / std, from float32 [..., H, W, C] in 0..1, in the same shape."""
    mean, std = (np.asarray(stats[key], np.float32) for key in ("mean", "std"))
    return lambda images: (images - mean) / std
