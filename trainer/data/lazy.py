"""Images decoded on demand: `Split.images` for data larger than memory."""

import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from linseed.trainer.data.dataset import empty_images
from linseed.trainer.data.decode import (
    PLAIN,
    Conversion,
    attempt,
    decode_random_crop,
    decode_square,
    shown,
)
from linseed.trainer.data.splits import Origin, Split
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.runtime.machine import cores

# This many bad images in a row are not single damaged files.
MOST_BAD_IN_A_ROW = 100

_IMAGES_PER_TASK = 8
_CROP_DRAW = 0xC20B  # separates the draws of crops from others of the same seed

_log = logging.getLogger(__name__)


def _centre(file, *, image_size, resize, conversion, rng):
    return decode_square(file, image_size=image_size, resize=resize, conversion=conversion)


def _random_resized_crop(file, *, image_size, resize, conversion, rng):
    return decode_random_crop(file, image_size=image_size, rng=rng, conversion=conversion)


# How a training image is cropped: (file, image_size, resize, conversion, rng) -> uint8 [image_size, image_size, 3].
TRAIN_CROPS = {"centre": _centre, "random_resized_crop": _random_resized_crop}


class Records(Protocol):
    """Encoded images in files, in a fixed order. Picklable, as worker processes get a copy."""

    def __len__(self) -> int: ...

    def open(self, record: int) -> str | BinaryIO:
        """The path of an encoded image, or its bytes as a file. A bad record may raise any exception."""

    def name(self, record: int) -> str:
        """The name by which a user finds it."""

    def identity(self, records: np.ndarray) -> Iterator[bytes]:
        """Names and sizes, no pixels, of `records` (int [M]): they change if an image is exchanged."""


class Decoding(NamedTuple):
    """How encoded images are decoded.

    image_size: height and width, in pixels. resize: the size of the square whose centre is shown, at least
    `image_size`. conversion: how an image becomes that square. train_crop: a name in `TRAIN_CROPS`; "centre" is that
    square, too. on_bad_image: "error" or "skip".
    """

    image_size: int
    resize: int
    train_crop: str
    on_bad_image: str
    conversion: Conversion = PLAIN

    def check(self):
        """Raises ConfigError, one line, for sizes that do not go together."""
        if self.resize < self.image_size:
            raise ConfigError(
                f"config.data.source.resize is {self.resize}, less than image_size={self.image_size}; raise it"
            )


class LazyImages:
    """uint8 [N, image_size, image_size, 3], decoded when read.

    `places` (int64 [N]) index the records in use. Slices and int arrays index it like an array, at the cost of
    decoding; `take` gives other lazy images and decodes nothing. Reading decodes on all cores, in threads.

    A bad image is an error, or, with on_bad_image "skip", not counted: `read_good` marks it, and a training stream
    shows the next good one instead. Either way the log names it once.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4
    nbytes = 0  # in memory

    def __init__(self, records: Records, places: np.ndarray, *, decoding: Decoding, workers: int):
        self.records, self.places, self.decoding, self.workers = records, places, decoding, workers
        self._named = set()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        size = self.decoding.image_size
        return (len(self.places), size, size, 3)

    def __len__(self) -> int:
        return len(self.places)

    def take(self, index: np.ndarray, axis: int = 0) -> "LazyImages":
        """The images at `index` (int [M]), not decoded; called like `numpy.ndarray.take` with axis 0."""
        return LazyImages(self.records, self.places[index], decoding=self.decoding, workers=self.workers)

    def __getitem__(self, index) -> np.ndarray:
        return self.read(index) if np.ndim(self.places[index]) else self.read(np.array([index]))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read(slice(None)).astype(dtype or self.dtype, copy=False)

    def read(self, index: slice | np.ndarray) -> np.ndarray:
        """The images at `index`: uint8 [n, H, W, 3]. A skipped bad image is black.

        Raises DataError for a bad image that is not skipped, and if the images do not fit into memory.
        """
        return self.read_good(index)[0]

    def read_good(self, index: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images as from `read`, and which of them are good: bool [n]."""
        places = self.places[index]
        _, height, width, channels = self.shape
        images = empty_images(len(places), height=height, width=width, channels=channels)
        good = np.ones(len(places), bool)
        decode = functools.partial(_centre, **self._how(), rng=None)

        def read_some(start):
            bad = {}
            for i in range(start, min(start + _IMAGES_PER_TASK, len(places))):
                image, reason = self._decode(places[i], decode)
                if image is None:
                    bad[self.records.name(places[i])] = reason
                    image, good[i] = 0, False
                images[i] = image
            return bad

        quiet_pillow()
        with ThreadPoolExecutor(cores()) as pool:
            for bad in pool.map(read_some, range(0, len(places), _IMAGES_PER_TASK)):
                self.report(bad)
        return images, good

    def train_image(self, index: int, *, seed: int, place: int) -> tuple[np.ndarray, int, dict[str, str]]:
        """The training image at `index`: uint8 [H, W, 3], its index, and {name: reason} of bad ones passed over.

        The crop depends only on `seed` and `place`, the position in the training stream. A bad image is replaced by the
        next good one of the split, which wraps around.
        """
        crop, bad = TRAIN_CROPS[self.decoding.train_crop], {}
        for offset in range(min(len(self), MOST_BAD_IN_A_ROW)):
            shown_index = (index + offset) % len(self)
            rng = np.random.default_rng([seed, place, _CROP_DRAW])
            record = self.places[shown_index]
            image, reason = self._decode(record, functools.partial(crop, **self._how(), rng=rng))
            if image is not None:
                return image, shown_index, bad
            bad[self.records.name(record)] = reason
        raise DataError(
            f"{len(bad)} images in a row cannot be read, the last {_describe(*bad.popitem())}; restore the data"
        )

    def report(self, bad: dict[str, str]):
        """Logs bad images, {name: reason}, at level WARNING, each once."""
        for name in bad.keys() - self._named:
            self._named.add(name)
            _log.warning("bad image, %d so far: %s is left out", len(self._named), _describe(name, bad[name]))

    def identity(self) -> str:
        """sha256 of the names, sizes and decoding settings of the images, without decoding.

        on_bad_image is left out, so a run can go on without its bad images.
        """
        how = self._how()
        conversion = how.pop("conversion")
        how["train_crop"] = self.decoding.train_crop
        if conversion != PLAIN:  # which earlier runs had without saying it
            how |= conversion.marks()
        digest = hashlib.sha256(repr(how).encode())
        for part in self.records.identity(self.places):
            digest.update(part)
        return digest.hexdigest()

    def _how(self):
        decoding = self.decoding
        return {"image_size": decoding.image_size, "resize": decoding.resize, "conversion": decoding.conversion}

    def _decode(self, record: int, decode: Callable) -> tuple[np.ndarray | None, str]:
        found, reason = attempt(lambda: decode(self.records.open(record)), self.records.name(record))
        if reason and self.decoding.on_bad_image == "error":
            raise DataError(
                f"{_describe(self.records.name(record), reason)} cannot be read; train again with "
                "--config.data.source.on_bad_image=skip --on_config_change=accept, which leaves bad images out; before "
                "the first checkpoint you may also repair or delete it"
            )
        return found, reason


def origin(split: Split) -> Origin | None:
    """The files that the images of `split` come from; None for those of an array."""
    if isinstance(split.images, LazyImages):
        return Origin(split.images.records, split.images.places)
    return split.origin


def _describe(name, reason):
    return f"{shown(name)} ({reason})"


def quiet_pillow():
    """Silences Pillow's warnings of odd metadata in this process; our own log names bad images."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
