"""A trained network that classifies images, from a model file alone: no data, no run."""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from linseed.ranges import RangeError
from linseed.trainer.data import stats
from linseed.trainer.data.decode import shown, why_bad
from linseed.trainer.data.image_file import quiet
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.portable import images as images_lib
from linseed.trainer.portable import model_file, network
from linseed.trainer.portable import preprocessing as preprocessing_lib
from linseed.trainer.runtime.machine import cores
from linseed.trainer.step import tta
from linseed.trainer.step.calibration import log_softmax
from linseed.trainer.step.eval_step import make_logits
from linseed.trainer.weights.features import make_features

_MOST_VALUES = 2**24  # in a batch of images, unless its size is given
_LARGEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a classifier says of N images.

    names: their paths, or "image 0" and so on. logits: float32 [N, C]. probabilities: float32 [N, C], softmax of the
    logits over the temperature. classes: the most probable one of each, int [N]. features: float32 [N, F], what the
    network hands to its last layer, where they were asked for.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    logits: np.ndarray
    temperature: float
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return np.exp(log_softmax(self.logits / self.temperature)).astype(np.float32)

    @property
    def classes(self) -> np.ndarray:
        return np.argmax(self.logits, axis=1)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each most probable class."""
        return tuple(self.class_names[label] for label in self.classes)

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """For each image its `count` most probable classes (all, if there are fewer), with their probabilities."""
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[label], float(self.probabilities[row, label])) for label in labels]
            for row, labels in enumerate(order)
        ]


class Part(NamedTuple):
    """The predictions of a part of a stream, and {name: reason} of its images that cannot be read."""

    predictions: Predictions
    bad: dict[str, str]


class Classifier:
    """Made by `load`. card: all that the model file says, as JSON."""

    def __init__(
        self,
        card: Mapping[str, Any],
        *,
        class_names: tuple[str, ...],
        preprocessing: preprocessing_lib.Preprocessing,
        temperature: float,
        weights: Any,
        logits: Callable,
        features: Callable,
    ):
        self.card, self.class_names, self.preprocessing = card, class_names, preprocessing
        self._temperature, self._weights = temperature, jax.device_put(weights)
        self._programs = {
            False: jax.jit(lambda weights, images: (logits(weights, images), None)),
            True: jax.jit(lambda weights, images: (logits(weights, images), features(weights, images))),
        }

    def predict(
        self, images: Any, *, calibrated: bool = True, features: bool = False, batch_size: int | None = None
    ) -> Predictions:
        """Classifies `images`: a path, a folder (with those below it), an image of Pillow's, uint8 [H, W, C] or
        [N, H, W, C], or an iterable of paths, images and arrays.

        They are read as validation's were; an array of the network's own shape is taken as it is. calibrated: whether
        probabilities are by the temperature of the file, or by 1. Raises DataError, one line, for an image that cannot
        be read, and for none.
        """
        names, logits, seen = [], [], []
        parts = self.stream(images_lib.named(images, own=self.preprocessing), features=features, batch_size=batch_size)
        for found, bad in parts:
            for name, reason in bad.items():
                raise DataError(f"{shown(name)} cannot be read ({reason}); repair it or leave it out")
            names += found.names
            logits.append(found.logits)
            seen.append(found.features)
        if not names:
            raise DataError(f"no images in {shown(str(images))[:200]}; check the path")
        return Predictions(
            tuple(names),
            self.class_names,
            np.concatenate(logits),
            self._temperature if calibrated else 1.0,
            np.concatenate(seen) if features else None,
        )

    def stream(
        self, images: Iterable[tuple[str, Any]], *, features: bool = False, batch_size: int | None = None
    ) -> Iterator[Part]:
        """The predictions of (name, image) pairs, in their order; images as for `predict`.

        Images are decoded in threads while the device is busy; only those of a few batches are in memory.
        """
        own = self.preprocessing
        fitting = max(1, min(_LARGEST_BATCH, _MOST_VALUES // (own.height * own.width * own.channels)))
        size = batch_size or 1 << fitting.bit_length() - 1
        rows, started = 0, collections.deque()
        with quiet(), ThreadPoolExecutor(cores()) as pool:
            decoded = _ahead(pool, self._decoded, images, most=2 * size)
            while some := list(itertools.islice(decoded, size)):
                # One shape for a stream: few images are padded to a power of two, all others to whole batches.
                rows = rows or min(size, 1 << (len(some) - 1).bit_length())
                started.append(self._start(some, rows=max(rows, len(some)), features=features))
                if len(started) > 1:
                    yield self._finished(*started.popleft())
            while started:
                yield self._finished(*started.popleft())

    def _decoded(self, item):
        """(name, pixels or None, reason)."""
        name, image = item
        try:
            if isinstance(image, Image.Image):
                return name, self.preprocessing.of_image(image), ""
            if isinstance(image, np.ndarray):
                return name, self.preprocessing.of_array(image), ""
            return name, self.preprocessing.decode(image), ""
        except DataError:
            raise
        except Exception as error:  # a decoder may raise anything on damaged bytes
            return name, None, why_bad(error)

    def _start(self, some, *, rows, features):
        """What is under way: names, logits and features on the device, and the reasons of bad images."""
        good = [(name, pixels) for name, pixels, _ in some if pixels is not None]
        bad = {name: reason for name, pixels, reason in some if pixels is None}
        own = self.preprocessing
        batch = np.zeros((rows, own.height, own.width, own.channels), np.uint8)
        for row, (_, pixels) in enumerate(good):
            batch[row] = pixels
        return [name for name, _ in good], self._programs[features](self._weights, batch), bad

    def _finished(self, names, outputs, bad):
        logits, features = jax.device_get(outputs)
        count = len(names)
        found = Predictions(
            tuple(names),
            self.class_names,
            logits[:count],
            self._temperature,
            None if features is None else features[:count],
        )
        return Part(found, bad)


def load(path: str | os.PathLike) -> Classifier:
    """The classifier in the model file at `path`.

    Raises DataError, one line, for a file that is no whole model file, and ConfigError for one whose network is that of
    a plugin which is not loaded; nothing beside the file is read or imported.
    """
    path = Path(path).expanduser()
    card, tensors = model_file.read(path)
    try:
        class_names, temperature = _names(card), float(card["temperature"])
        own, statistics = preprocessing_lib.read(card["preprocessing"]), _statistics(card["preprocessing"])
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature {temperature}")
        config = network.config_of(card)
        views = tta.VIEWS[config.eval.views]
        model, weights = network.build(config, tensors, classes=len(class_names), image_shape=own[:3])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RangeError) as error:
        reason = shown(" ".join(str(error).split()))[:200]
        raise DataError(f"{path} says what cannot be ({reason}); use a file that linseed export wrote") from None
    normalize = stats.make_normalize(statistics)
    return Classifier(
        card,
        class_names=class_names,
        preprocessing=own,
        temperature=temperature,
        weights=weights,
        logits=make_logits(model=model, normalize=normalize, views=views),
        features=make_features(model=model, normalize=normalize),
    )


def _names(card) -> tuple[str, ...]:
    names = card["label_names"]
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes have no names")
    return tuple(names)


def _statistics(record) -> dict[str, np.ndarray]:
    """`mean` and `std` of a channel each, or of a pixel each."""
    statistics = {key: np.array(record[key], np.float64) for key in ("mean", "std")}
    own = tuple(record[key] for key in ("height", "width", "channels"))
    if any(values.shape not in (own, own[2:]) for values in statistics.values()):
        raise ValueError("its mean and deviation are of other images")
    return statistics


def _ahead(pool, function, items, *, most):
    """`map(function, items)` by `pool`, at most `most` items ahead."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
