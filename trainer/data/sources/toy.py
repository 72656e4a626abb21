"""Sources that need no download: scikit-learn's digits, and generated patterns for tests."""

import functools
import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np

from linseed.ranges import Between, Count, Inside, Natural
from linseed.trainer.data.dataset import Source, carve_test, check_memory, empty_images, hashed
from linseed.trainer.data.splits import Split, take
from linseed.trainer.errors import ConfigError, DataError


def digits(*, test_fraction: Inside = 0.2, split_seed: Natural = 0) -> Source:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8x1, values 0..16 scaled to 0..255.

    Test is a stratified share `test_fraction`, drawn by `split_seed`; no download.
    """
    everything = _read_digits()
    train, test = carve_test(everything.labels, test_fraction=test_fraction, split_seed=split_seed)
    return Source(
        train=take(everything, train),
        val=None,
        open_test=lambda: take(_read_digits(), test),
        class_names=tuple(str(digit) for digit in range(10)),
        skipped=(),
        test_fingerprint=hashed(test.tolist(), everything.labels[test].tolist()),
    )


def _read_digits() -> Split:
    # The file of sklearn.datasets.load_digits, without the second that importing scikit-learn takes.
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise DataError("the digits source needs scikit-learn: pip install scikit-learn")
    (folder_of_package,) = package.submodule_search_locations
    table = np.loadtxt(Path(folder_of_package) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 8, 8, 1) * (255.0 / 16.0)).astype(np.uint8)
    return Split(images, table[:, -1].astype(np.int32))


def synthetic(
    *,
    num_examples: Count = 160,
    num_classes: Annotated[int, Between(2, 2**31 - 1)] = 4,
    image_size: Count = 8,
    channels: Count = 3,
    seed: Natural = 0,
) -> Source:
    """A problem that a small model learns, for tests and benchmarks.

    Each class is a fixed random pattern of low spatial frequencies; an example is its class's pattern plus noise. Train
    and test have `num_examples` each, with different noise and class counts equal within one; `image_size` in pixels.
    Everything depends only on the arguments. Raises ConfigError for fewer than two examples per class.
    """
    if num_examples < 2 * num_classes:
        raise ConfigError(
            f"config.data.source.num_examples is {num_examples}; set it to at least {2 * num_classes}, two per class"
        )
    # Checked before the patterns, float64, and the noise are drawn.
    check_memory(num_examples + 16 * num_classes, height=image_size, width=image_size, channels=channels)
    patterns = _low_frequency_patterns(num_classes, image_size=image_size, channels=channels, seed=seed)
    return Source(
        train=_noisy_examples(patterns, num_examples=num_examples, seed=[seed, 1]),
        val=None,
        open_test=functools.partial(_noisy_examples, patterns, num_examples=num_examples, seed=[seed, 2]),
        class_names=tuple(f"class{label}" for label in range(num_classes)),
        skipped=(),
        test_fingerprint=hashed(num_examples, num_classes, image_size, channels, seed),
    )


def _low_frequency_patterns(num_classes: int, *, image_size: int, channels: int, seed: int) -> np.ndarray:
    """float32 [num_classes, image_size, image_size, channels]: random sums of 4x4 cosines, of unit mean square."""
    rng = np.random.default_rng([seed, 0])
    place = (np.arange(image_size) + 0.5) / image_size
    waves = np.cos(np.pi * np.arange(4)[:, np.newaxis] * place)
    weights = rng.standard_normal((num_classes, 4, 4, channels))
    patterns = np.einsum("nuvc,uy,vx->nyxc", weights, waves, waves)
    patterns /= np.sqrt(np.mean(patterns**2, axis=(1, 2, 3), keepdims=True))
    return patterns.astype(np.float32)


def _noisy_examples(patterns: np.ndarray, *, num_examples: int, seed: list[int]) -> Split:
    rng = np.random.default_rng(seed)
    num_classes, height, width, channels = patterns.shape
    labels = rng.permutation(np.arange(num_examples, dtype=np.int32) % num_classes)
    images = empty_images(num_examples, height=height, width=width, channels=channels)
    for start in range(0, num_examples, 1024):  # in parts, to keep the floats small
        part = slice(start, start + 1024)
        noise = rng.standard_normal(images[part].shape, dtype=np.float32)
        images[part] = np.clip(128.0 + 32.0 * patterns[labels[part]] + 48.0 * noise, 0.0, 255.0)
    return Split(images, labels)
