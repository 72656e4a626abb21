"""Normalisation, with statistics of the train split in use.

The statistics are computed from the very images that are trained on, kept beside the run with
the fingerprint of those images, and never taken from another data set or from validation or test. Of lazy images
they are those of a sample of `SAMPLE`, drawn without replacement by a fixed seed and read a part at a time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from linseed.trainer import checksum
from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError, unknown_name

# How far a config's constants may lie from the data's own before a warning, on the 0..1 scale.
TOLERANCE = 0.01

SAMPLE = 10_000
_IMAGES_PER_READ = 256


def fingerprint(*splits: Split) -> str:
    """sha256 of the shapes, pixels and labels of `splits`.

    Names and sizes of files stand for the pixels of lazy images: a file exchanged for another of its name and size is
    then not noticed.
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

    Exact: the moments are taken from the histogram of the 256 pixel values.
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
    return {"mean": mean, "std": np.maximum(std, 1 / 255)}  # a flat channel is centred, not divided by zero


def _channel_mean(images):
    mean, _ = channel_moments(images)
    return {"mean": mean, "std": np.ones(images.shape[-1])}


def _mean_image(images):
    # The lecture's H x W x C mean, on the 0..1 scale; subtracted by place, after augmentation has moved the image.
    total, count = 0, 0
    for some in _parts(images):
        total, count = total + some.sum(axis=0, dtype=np.uint64), count + len(some)
    return {"mean": total / (255.0 * count), "std": np.ones(images.shape[-1])}


def _parts(images) -> Iterator[np.ndarray]:
    """All of an array, in one; of lazy images the good ones of the sample, a part at a time."""
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

    cache: a JSON file, used where it is of `name` and of the very images of `split`, else written anew.
    `mean` and `std` of the config, where not empty, are used instead of the computed ones; a warning
    says where they lie further than `TOLERANCE` from the data's own. Raises ConfigError for an unknown
    name or constants that do not fit the channels.
    """
    if name not in NORMALIZERS:
        raise ConfigError(unknown_name("data.normalize", name, NORMALIZERS))
    computed = _cached(split, name, cache)
    if not mean and not std:
        return computed
    channels = split.images.shape[-1]
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"data.mean and data.std need {channels} numbers each, one a channel, or none at all: ()")
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


def _cached(split: Split, name: str, cache: Path) -> dict[str, np.ndarray]:
    marks = {"name": name, "fingerprint": fingerprint(split)}
    # Sealed: a digit that changed on the disk would change every image that the network sees.
    stored = (checksum.loads(cache.read_text(errors="replace")) if cache.exists() else None) or {}
    if all(stored.get(key) == value for key, value in marks.items()):
        return {key: np.array(stored[key]) for key in ("mean", "std")}
    computed = NORMALIZERS[name](split.images)
    record = {**marks, **{key: value.tolist() for key, value in computed.items()}}
    cache.write_text(json.dumps(checksum.seal(record)))
    return computed


def make_normalize(stats: dict[str, np.ndarray]) -> Callable:
    """`normalize(images)`: (images - mean) / std, float32 [..., H, W, C] in 0..1 to the same shape."""
    mean, std = (np.asarray(stats[key], np.float32) for key in ("mean", "std"))
    return lambda images: (images - mean) / std
