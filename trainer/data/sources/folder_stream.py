"""Class folders whose images are decoded on demand: data larger than memory."""

import functools
import os
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from linseed.ranges import Between, Count, Inside, Natural, OneOf
from linseed.trainer.data import survey
from linseed.trainer.data.dataset import Source
from linseed.trainer.data.decode import BACKGROUNDS, FITS, INTERPOLATIONS, Conversion
from linseed.trainer.data.lazy import TRAIN_CROPS, Decoding, LazyImages
from linseed.trainer.data.listing import ON_BAD_IMAGE, Files, check_headers, fingerprint, list_folder
from linseed.trainer.data.splits import Split


def folder_stream(
    *,
    root: str,
    image_size: Count = 224,
    resize: Count = 256,
    fit: Annotated[str, OneOf(FITS)] = "crop",
    background: Annotated[str, OneOf(BACKGROUNDS)] = "white",
    bits: Annotated[int, Between(8, 16)] = 16,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = "bilinear",
    train_crop: Annotated[str, OneOf(TRAIN_CROPS)] = "random_resized_crop",
    test_fraction: Inside = 0.2,
    split_seed: Natural = 0,
    on_bad_image: Annotated[str, OneOf(ON_BAD_IMAGE)] = "error",
    workers: Annotated[int, Between(0, 256)] = 0,
) -> Source:
    """Lists class folders under `root`, with layout and splits as for `folder.folder`; reads no pixel.

    Images are decoded on demand to `image_size` x `image_size` RGB: `fit` makes each a square of `resize` pixels, of
    which the centre is used. Training images are cropped by `train_crop`, a name in `lazy.TRAIN_CROPS`. `fit`,
    `background`, `bits` and `interpolation`: see `decode.Conversion`. `workers`: processes that decode training images,
    0 for threads of this one. `on_bad_image`: "error" raises at a bad image, "skip" leaves it out; see
    `lazy.LazyImages`. Raises DataError for data that is missing or not in this layout.
    """
    conversion = Conversion(fit=fit, background=background, bits=bits, interpolation=interpolation)
    decoding = Decoding(image_size, resize, train_crop=train_crop, on_bad_image=on_bad_image, conversion=conversion)
    decoding.check()
    listing = list_folder(root, test_fraction=test_fraction, split_seed=split_seed)
    files = listing.files
    if on_bad_image == "error":
        listing.check_refused()
        check_headers(listing.root, files["test"])
    split = functools.partial(_split, listing.root, decoding=decoding, workers=workers)
    train = split(files["train"])
    return Source(
        train=train,
        val=split(files["val"]) if "val" in files else None,
        open_test=functools.partial(split, files["test"]),
        class_names=listing.class_names,
        skipped=(),
        test_fingerprint=fingerprint(listing.root, files["test"]),
        notes=listing.notes + survey.notes(train.images.records, conversion=conversion, makes_square=True),
    )


def _split(root: str, files: Files, *, decoding: Decoding, workers: int) -> Split:
    records = FileRecords(root, files)
    return Split(LazyImages(records, np.arange(len(records)), decoding=decoding, workers=workers), files.labels)


class FileRecords:
    """Image files, as `lazy.Records`."""

    def __init__(self, root: str, files: Files):
        self._root = root
        self._paths = np.array([os.fsencode(path) for path in files.paths])  # a third of the memory of a list
        self._refused = {path: files.refused[path] for path in files.paths if path in files.refused}

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, record: int) -> str:
        path = self.name(record)
        if path in self._refused:
            raise OSError(self._refused[path])
        return os.path.join(self._root, path)

    def name(self, record: int) -> str:
        return os.fsdecode(self._paths[record])

    def identity(self, records: np.ndarray) -> Iterator[bytes]:
        for record in records:
            path = self.name(record)
            size = -1 if path in self._refused else os.stat(os.path.join(self._root, path)).st_size
            yield self._paths[record] + b"\0%d\0" % size
