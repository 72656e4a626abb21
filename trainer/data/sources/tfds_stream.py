"""TensorFlow Datasets whose images are decoded on demand: data larger than memory."""

import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from linseed.ranges import Between, Count, OneOf
from linseed.trainer import files
from linseed.trainer.data import survey
from linseed.trainer.data.dataset import Source, hashed
from linseed.trainer.data.decode import BACKGROUNDS, FITS, INTERPOLATIONS, Conversion
from linseed.trainer.data.lazy import TRAIN_CROPS, Decoding, LazyImages
from linseed.trainer.data.listing import ON_BAD_IMAGE
from linseed.trainer.data.sources.tfds import (
    check_labels,
    check_splits,
    damaged,
    feature_keys,
    open_encoded,
    prepared,
    split_files,
)
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import DataError

_EXAMPLES_PER_READ = 256

_log = logging.getLogger(__name__)


def tfds_stream(
    *,
    dataset: str = "imagenet2012",
    data_dir: str = "",
    train_split: str = "train",
    test_split: str = "validation",
    image_size: Count = 224,
    resize: Count = 256,
    fit: Annotated[str, OneOf(FITS)] = "crop",
    background: Annotated[str, OneOf(BACKGROUNDS)] = "white",
    bits: Annotated[int, Between(8, 16)] = 16,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)] = "bilinear",
    train_crop: Annotated[str, OneOf(TRAIN_CROPS)] = "random_resized_crop",
    on_bad_image: Annotated[str, OneOf(ON_BAD_IMAGE)] = "error",
    workers: Annotated[int, Between(0, 256)] = 0,
) -> Source:
    """Opens `dataset`, found or prepared as for `tfds.tfds`, and decodes no image; images of any size, always RGB.

    `image_size`, `resize`, `fit`, `background`, `bits`, `interpolation`, `train_crop`, `on_bad_image` and `workers`: as
    for `folder_stream.folder_stream`. Labels are inside the records, so the first use reads all of a split. They are
    then stored next to the data, if that folder is writable. Raises DataError for data that is unavailable or not of
    this kind.
    """
    conversion = Conversion(fit=fit, background=background, bits=bits, interpolation=interpolation)
    decoding = Decoding(image_size, resize, train_crop=train_crop, on_bad_image=on_bad_image, conversion=conversion)
    decoding.check()
    builder = prepared(dataset, data_dir=data_dir)
    image_key, label_key = feature_keys(builder)
    check_splits(builder, train_split=train_split, test_split=test_split)
    split = functools.partial(
        _split, builder, image_key=image_key, label_key=label_key, decoding=decoding, workers=workers
    )
    train = split(train_split)
    return Source(
        train=train,
        val=None,
        open_test=functools.partial(split, test_split),
        class_names=tuple(builder.info.features[label_key].names),
        skipped=(),
        test_fingerprint=hashed(builder.info.full_name, split_files(builder, test_split)),
        notes=survey.notes(train.images.records, conversion=conversion, makes_square=True),
    )


def _split(builder: Any, split: str, *, image_key: str, label_key: str, decoding: Decoding, workers: int) -> Split:
    records = TfdsRecords(builder, split, image_key=image_key)
    labels = _labels(builder, split, records, image_key=image_key, label_key=label_key)
    return Split(LazyImages(records, np.arange(len(records)), decoding=decoding, workers=workers), labels)


def _labels(builder: Any, split: str, records: "TfdsRecords", *, image_key: str, label_key: str) -> np.ndarray:
    """int32 [N], from the stored labels or from all records."""
    mark = hashlib.sha256("\0".join([*records.files, label_key]).encode()).hexdigest()[:16]
    kept = os.path.join(builder.data_dir, f".linseed-labels-{mark}.npy")
    classes = builder.info.features[label_key].num_classes
    try:
        labels = _kept_labels(kept, shape=(len(records),))
        if labels.size and 0 <= labels.min() and labels.max() < classes:
            return labels
    except Exception:  # anyone may have put this file there: its reader may raise anything
        pass
    if len(records) > 100_000:
        _log.warning("reading the labels of the %d examples of '%s' once, from their records", len(records), split)
    examples = open_encoded(builder, split, image_key=image_key)
    labels = np.empty(len(examples), np.int32)
    for start in range(0, len(examples), _EXAMPLES_PER_READ):
        some = list(range(start, min(start + _EXAMPLES_PER_READ, len(examples))))
        try:
            labels[some] = [example[label_key] for example in examples.__getitems__(some)]
        except Exception as error:  # the reader may raise anything on damaged files
            raise DataError(damaged(builder, split, error)) from error
    check_labels(labels, builder, split, label_key=label_key)
    saved = io.BytesIO()
    np.save(saved, labels)
    try:
        files.write(Path(kept), saved.getvalue())
    except OSError:
        _log.warning("the labels of '%s' cannot be stored in %s and are read again next time", split, builder.data_dir)
    return labels


def _kept_labels(path: str, *, shape: tuple[int, ...]) -> np.ndarray:
    """int32 of `shape` from an .npy file; raises if it holds anything else."""
    if not os.path.isfile(path):
        raise ValueError("not a file")
    mapped = np.lib.format.open_memmap(path, mode="r")  # mapped: a header with a false size takes no memory
    if (mapped.shape, mapped.dtype) != (shape, np.int32):
        raise ValueError("an array of another kind")
    return np.array(mapped)


class TfdsRecords:
    """The images of a split of a prepared data set, as `lazy.Records`."""

    def __init__(self, builder: Any, split: str, *, image_key: str):
        self._folder, self._split, self._image_key = str(builder.data_path), split, image_key
        self._count = builder.info.splits[split].num_examples
        self.files = split_files(builder, split)

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_examples"}  # open files

    @functools.cached_property
    def _examples(self) -> Any:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder_from_directory(self._folder)
        return open_encoded(builder, self._split, image_key=self._image_key)

    def open(self, record: int) -> io.BytesIO:
        return io.BytesIO(self._examples[int(record)][self._image_key])

    def name(self, record: int) -> str:
        return f"example {record} of split '{self._split}'"

    def identity(self, records: np.ndarray) -> Iterator[bytes]:
        yield "\0".join(self.files).encode()
        yield np.ascontiguousarray(records, np.int64).tobytes()
