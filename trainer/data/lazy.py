"""Images that are decoded when they are asked for, in place of `Split.images` that memory does not hold."""

import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from linseed.trainer.data.dataset import empty_images
from linseed.trainer.data.decode import check_is_bad, decode_centre, decode_random_crop, shown, why_bad
from linseed.trainer.data.listing import ON_BAD_IMAGE
from linseed.trainer.errors import ConfigError, DataError, unknown_name
from linseed.trainer.runtime.machine import cores

# A run of bad images this long is no accident of single files.
MOST_BAD_IN_A_ROW = 100

_IMAGES_PER_TASK = 8
_CROP_DRAW = 0xC20B  # sets the draws of crops apart from others of the same seed

_log = logging.getLogger(__name__)


def _centre(file, *, image_size, resize, rng):
    return decode_centre(file, image_size=image_size, resize=resize)


def _random_resized_crop(file, *, image_size, resize, rng):
    return decode_random_crop(file, image_size=image_size, rng=rng)


# How a training image is cut: (file, image_size, resize, rng) -> uint8 [image_size, image_size, 3].
TRAIN_CROPS = {"centre": _centre, "random_resized_crop": _random_resized_crop}


class Records(Protocol):
    """Encoded images in a fixed order, all in files. It can be pickled, for it goes to worker processes."""

    def __len__(self) -> int: ...

    def open(self, record: int) -> str | BinaryIO:
        """The path of an encoded image, or its bytes as a file. What is wrong with it raises, of any type."""

    def name(self, record: int) -> str:
        """What a user finds it by."""

    def identity(self, records: np.ndarray) -> Iterator[bytes]:
        """What would change if one of `records` (int [M]) were another image: names and sizes, no pixels."""


class Decoding(NamedTuple):
    """What becomes of an encoded image.

    image_size: height and width, in pixels. resize: what the shorter side is brought to before the centre is cut out,
    at least `image_size`. train_crop: a name in `TRAIN_CROPS`. on_bad_image: "error" or "skip".
    """

    image_size: int
    resize: int
    train_crop: str
    on_bad_image: str

    def check(self):
        """Raises ConfigError, one line, for settings that cannot be."""
        if self.train_crop not in TRAIN_CROPS:
            raise ConfigError(unknown_name("config.data.source.train_crop", self.train_crop, TRAIN_CROPS))
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ConfigError(unknown_name("config.data.source.on_bad_image", self.on_bad_image, ON_BAD_IMAGE))
        if self.image_size < 1:
            raise ConfigError(f"config.data.source.image_size is {self.image_size}; set it to a size in pixels")
        if self.resize < self.image_size:
            raise ConfigError(
                f"config.data.source.resize is {self.resize}, less than image_size={self.image_size}; raise it"
            )


class LazyImages:
    """uint8 [N, image_size, image_size, 3] whose values are decoded when they are read.

    `places` (int64 [N]) are the records in use. Slices and int arrays index it like an array, at the cost of decoding;
    `take` gives other lazy images and decodes nothing. Reading decodes on all cores, in threads.

    A bad image is an error, or, with on_bad_image "skip", left out of what is counted: `read_good` marks it, and a
    training stream shows the next good one in its place. Either way it is named in the log, once.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4
    nbytes = 0  # of memory

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
        """The images at `index` (int [M]), not decoded; called as `numpy.ndarray.take` with axis 0 is."""
        return LazyImages(self.records, self.places[index], decoding=self.decoding, workers=self.workers)

    def __getitem__(self, index) -> np.ndarray:
        return self.read(index) if np.ndim(self.places[index]) else self.read(np.array([index]))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.read(slice(None)).astype(dtype or self.dtype, copy=False)

    def read(self, index: slice | np.ndarray) -> np.ndarray:
        """The images at `index`, centre crops: uint8 [n, H, W, 3]. A bad one that is skipped is black.

        Raises DataError for a bad one that is not, and where they do not fit into memory.
        """
        return self.read_good(index)[0]

    def read_good(self, index: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `read` gives, and which of them are good: bool [n]."""
        places = self.places[index]
        _, height, width, channels = self.shape
        images = empty_images(len(places), height=height, width=width, channels=channels)
        good = np.ones(len(places), bool)
        decode = functools.partial(_centre, **self._size(), rng=None)

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
        """The training image at `index`: uint8 [H, W, 3], its own index, and the bad ones passed over, each with why.

        The draw of its crop depends on `seed` and `place`, that in the training stream, alone. For a bad image stands
        the next good one, in the order of the split and from its end on at its beginning.
        """
        crop, bad = TRAIN_CROPS[self.decoding.train_crop], {}
        for offset in range(min(len(self), MOST_BAD_IN_A_ROW)):
            shown_index = (index + offset) % len(self)
            rng = np.random.default_rng([seed, place, _CROP_DRAW])
            record = self.places[shown_index]
            image, reason = self._decode(record, functools.partial(crop, **self._size(), rng=rng))
            if image is not None:
                return image, shown_index, bad
            bad[self.records.name(record)] = reason
        raise DataError(
            f"{len(bad)} images in a row cannot be read, the last {_describe(*bad.popitem())}; mend the data"
        )

    def report(self, bad: dict[str, str]):
        """Names bad images, each with why, in the log, level WARNING, each once."""
        for name in bad.keys() - self._named:
            self._named.add(name)
            _log.warning("bad image, %d so far: %s is left out", len(self._named), _describe(name, bad[name]))

    def identity(self) -> str:
        """sha256 of what the images are made from and how, without decoding: names, sizes and settings.

        What is done about bad images is none of it, so that a run can be told to go on without them.
        """
        how = {**self._size(), "train_crop": self.decoding.train_crop}
        digest = hashlib.sha256(repr(how).encode())
        for part in self.records.identity(self.places):
            digest.update(part)
        return digest.hexdigest()

    def _size(self):
        return {"image_size": self.decoding.image_size, "resize": self.decoding.resize}

    def _decode(self, record: int, decode: Callable) -> tuple[np.ndarray | None, str]:
        try:
            return decode(self.records.open(record)), ""
        except Exception as error:  # On damaged bytes a decoder may raise anything.
            check_is_bad(error, self.records.name(record))
            reason = why_bad(error)
            if self.decoding.on_bad_image == "skip":
                return None, reason
            raise DataError(
                f"{_describe(self.records.name(record), reason)} cannot be read; mend or delete it, or leave bad images"
                " out with config.data.source.on_bad_image=skip"
            ) from error


def _describe(name, reason):
    return f"{shown(name)} ({reason})"


def quiet_pillow():
    """Silences Pillow's warnings of odd metadata, in this process: bad images are named in our own log."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
