"""Downloads, prepares and reads TensorFlow Datasets without TensorFlow."""

import contextlib
import difflib
import functools
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from linseed.trainer.data.dataset import Source, empty_images, hashed
from linseed.trainer.data.decode import decode_as_it_is, one_line
from linseed.trainer.data.sources.tfds_cifar10 import cifar_class
from linseed.trainer.data.sources.tfds_trust import check_features, check_inside, check_name
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import DataError

# `tensorflow_datasets` is imported where it is used: the import is slow, and other sources do not need it.

# Stock builders that need TensorFlow for preparation; ours replace them.
_CIFAR = {"cifar10": "Cifar10", "cifar100": "Cifar100"}

_PROBE_SECONDS = 20.0
_EXAMPLES_PER_READ = 256


def tfds(
    *, dataset: str = "cifar10", data_dir: str = "", train_split: str = "train", test_split: str = "test"
) -> Source:
    """Reads `dataset`, an image classification data set of TensorFlow Datasets, into memory.

    A data set already prepared in `data_dir` ("" is TFDS's default folder) is read if its files are array_record,
    whoever prepared it. Otherwise it is downloaded and prepared there: `cifar10` and `cifar100` without TensorFlow,
    with the same order and pixels, and others if their builder does not need it. An archive in
    `<data_dir>/downloads/manual/`, under its own name, replaces the download; checksums are always verified.

    `train_split` and `test_split` are in TFDS's notation ("train", "train[:90%]", "validation") and must not share
    examples. Images keep size and channels (uint8). Raises DataError for data that is unavailable or not of this kind.
    """
    builder = prepared(dataset, data_dir=data_dir)
    image_key, label_key = feature_keys(builder)
    check_splits(builder, train_split=train_split, test_split=test_split)
    read = functools.partial(_read, builder, image_key=image_key, label_key=label_key)
    train = read(split=train_split)
    return Source(
        train=train,
        val=None,
        open_test=functools.partial(read, split=test_split, like=train.images.shape[1:]),
        class_names=tuple(builder.info.features[label_key].names),
        skipped=(),
        test_fingerprint=hashed(builder.info.full_name, split_files(builder, test_split)),
    )


def split_files(builder: Any, split: str) -> list[str]:
    """The parts of files that `split` consists of: name, examples skipped and taken, size in bytes (-1: unreadable)."""
    return [
        f"{os.path.basename(part.filename)} {part.skip} {part.take} {_size(part.filename)}"
        for part in builder.info.splits[split].file_instructions
    ]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # reading it will raise the error


def prepared(dataset: str, *, data_dir: str) -> Any:
    """The TFDS builder of `dataset`, prepared now if it was not."""
    builder = _builder(dataset, data_dir=data_dir)
    if not _is_prepared(builder):
        _prepare(builder)
        builder = _builder(dataset, data_dir=data_dir)
    return builder


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"the tfds source lacks a package ({one_line(error)}):"
            " pip install tensorflow-datasets array-record importlib_resources"
        ) from error
    return tensorflow_datasets


def _builder(dataset: str, *, data_dir: str) -> Any:
    """The TFDS builder of `dataset`, read from the files in `data_dir` if they exist."""
    check_name(dataset)
    library = _import_tfds()
    where = os.path.expanduser(data_dir) or None
    check_features(Path(where or library.core.constants.DATA_DIR) / dataset.partition("/")[0].partition(":")[0])
    try:
        if dataset in _CIFAR:
            return cifar_class(_CIFAR[dataset])(data_dir=where)
        return library.builder(dataset, data_dir=where)
    except library.core.registered.DatasetNotFoundError as error:
        known = library.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(dataset, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see tensorflow_datasets.list_builders()"
        raise DataError(f"unknown data set '{dataset}' in config.data.source.dataset; {hint}") from error
    except Exception as error:  # A builder may raise anything.
        raise DataError(f"TFDS cannot set up '{dataset}' ({one_line(error)}); correct config.data.source") from error


def _is_prepared(builder: Any) -> bool:
    return builder.data_path.exists() and builder.is_prepared()


def _prepare(builder: Any) -> None:
    """Downloads and prepares, as array_record, without TensorFlow."""
    import requests

    library = _import_tfds()
    downloads = os.path.join(builder.data_dir_root, "downloads")
    try:
        _check_reachable(builder, downloads)
        # TFDS prints to stdout, which belongs to the program that called us.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=library.download.DownloadConfig(try_download_gcs=False),
            )
    except DataError:
        raise
    except (requests.RequestException, library.core.download.util.DownloadError) as error:
        raise DataError(_no_download(builder, downloads, error)) from error
    except library.download.download_manager.NonMatchingChecksumError as error:
        raise DataError(
            f"the archive of '{builder.name}' is not the official one (wrong checksum); delete it from {downloads} and"
            " run again"
        ) from error
    except Exception as error:  # the code of a thousand data sets may raise anything
        if _is_prepared(builder):
            return  # another process has prepared it meanwhile
        raise DataError(
            f"TFDS cannot prepare '{builder.name}' here ({one_line(error)}); prepare it once where TensorFlow is"
            " installed, with file_format=array_record, and set config.data.source.data_dir to that folder"
        ) from error


def _check_reachable(builder: Any, downloads: str) -> None:
    """Raises if nothing is downloaded yet and the host does not answer: TFDS would retry for minutes."""
    import requests
    from tensorflow_datasets.core.download import resource

    archives = builder.url_infos or {}
    names = {info.filename for info in archives.values()}
    names |= {resource.get_dl_fname(url, info.checksum) for url, info in archives.items()}
    present = any(names.intersection(files) for _, _, files in os.walk(downloads))
    urls = [url for url in archives if url.startswith("http")]
    if urls and not present:
        requests.head(urls[0], timeout=_PROBE_SECONDS).close()


def _no_download(builder: Any, downloads: str, error: Exception) -> str:
    names = [info.filename for info in (builder.url_infos or {}).values()]
    files = ", ".join(names) if 0 < len(names) < 5 and all(names) else "its archives"
    return (
        f"cannot download '{builder.name}' ({type(error).__name__}); put {files} into"
        f" {os.path.join(downloads, 'manual')}, or read class folders with the config variant :root=DIR"
    )


def feature_keys(builder: Any) -> tuple[str, str]:
    """The names of the image and label features."""
    library = _import_tfds()
    features = builder.info.features
    kinds = (library.features.Image, library.features.ClassLabel)
    pair = builder.info.supervised_keys
    if not (
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(key, str) and key in features for key in pair)
    ):
        candidates = [[key for key, feature in features.items() if isinstance(feature, kind)] for kind in kinds]
        pair = tuple(keys[0] for keys in candidates if len(keys) == 1)
    if len(pair) != 2 or not all(isinstance(features[key], kind) for key, kind in zip(pair, kinds, strict=True)):
        raise DataError(
            f"'{builder.name}' is not image classification, one image and one class label: it has"
            f" {', '.join(sorted(features))}; choose another config.data.source.dataset"
        )
    if features[pair[0]].np_dtype != np.uint8:
        raise DataError(f"'{builder.name}' holds {features[pair[0]].np_dtype} images, not uint8; choose another")
    return pair


def check_splits(builder: Any, *, train_split: str, test_split: str) -> None:
    """Raises DataError for a missing or empty split, and if the two share examples."""
    ranges = {}
    folder = str(builder.data_path)
    for setting, split in (("train_split", train_split), ("test_split", test_split)):
        try:
            ranges[setting] = [
                (
                    part.filename,
                    part.skip,
                    part.skip + part.examples_in_shard if part.take < 0 else part.skip + part.take,
                )
                for part in builder.info.splits[split].file_instructions
            ]
        except Exception as error:
            raise DataError(
                f"'{builder.name}' has no split '{split}' (config.data.source.{setting});"
                f" it has {', '.join(builder.info.splits)}"
            ) from error
        if not ranges[setting]:
            raise DataError(f"split '{split}' of '{builder.name}' is empty; choose another {setting}")
        check_inside([file for file, _, _ in ranges[setting]], folder)
    for file, start, stop in ranges["train_split"]:
        for other_file, other_start, other_stop in ranges["test_split"]:
            if file == other_file and start < other_stop and other_start < stop:
                raise DataError(
                    f"train_split '{train_split}' and test_split '{test_split}' of '{builder.name}' share examples;"
                    " choose two that do not"
                )


def _read(builder: Any, *, split: str, image_key: str, label_key: str, like: tuple[int, ...] | None = None) -> Split:
    """All examples of `split` in TFDS's order; images of shape `like` [H, W, C], or of the first one's."""
    examples = open_encoded(builder, split, image_key=image_key)
    channels = builder.info.features[image_key].shape[-1]
    images, labels = None, np.empty(len(examples), np.int32)
    for start in range(0, len(examples), _EXAMPLES_PER_READ):
        some = range(start, min(start + _EXAMPLES_PER_READ, len(examples)))
        try:
            read = [  # one call takes half the time of single ones
                (decode_as_it_is(io.BytesIO(example[image_key]), channels=channels), example[label_key])
                for example in examples.__getitems__(list(some))
            ]
        except Exception as error:  # the reader or decoder may raise anything on damaged files
            raise DataError(damaged(builder, split, error)) from error
        for i, (image, label) in zip(some, read, strict=True):
            labels[i] = label
            if images is None:
                like = like or image.shape
                images = empty_images(len(examples), height=like[0], width=like[1], channels=like[2])
            if image.shape != like:
                raise DataError(
                    f"'{builder.name}' holds images of different sizes, {like} and {image.shape}; export them to class"
                    " folders, and read these with the folder source and its image_size"
                )
            images[i] = image
    check_labels(labels, builder, split, label_key=label_key)
    return Split(images, labels)


def open_encoded(builder: Any, split: str, *, image_key: str) -> Any:
    """The examples of `split` by index, as TFDS's data source, with encoded images (bytes).

    TFDS itself would decode them with any decoder that Pillow has.
    """
    library = _import_tfds()
    try:
        return builder.as_data_source(split, decoders={image_key: library.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"'{builder.name}' in {builder.data_dir} is not array_record, and other formats need TensorFlow; prepare it"
            " with file_format=array_record, or set config.data.source.data_dir to an empty folder"
        ) from error
    except Exception as error:
        raise DataError(damaged(builder, split, error)) from error


def check_labels(labels: np.ndarray, builder: Any, split: str, *, label_key: str):
    """Raises DataError unless all `labels` (int [N]) are classes."""
    if labels.min() < 0 or labels.max() >= builder.info.features[label_key].num_classes:
        raise DataError(f"split '{split}' of '{builder.name}' has examples without a label; choose another split")


def damaged(builder: Any, split: str, error: Exception) -> str:
    return (
        f"cannot read split '{split}' of '{builder.name}' ({one_line(error)}); delete {builder.data_dir} to prepare it"
        " again"
    )
