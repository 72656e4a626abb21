"""The arrays of one .npz file as a source."""

import collections
import functools
import math
import os
from typing import Annotated, NamedTuple

import numpy as np

from linseed.ranges import OneOf
from linseed.trainer.data.dataset import Source, hashed
from linseed.trainer.data.decode import shown
from linseed.trainer.data.layout import listed, meant_split
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import DataError
from linseed.trainer.runtime.machine import memory_bytes

_TRAIN = ("train_images", "train_labels")
_VAL = ("val_images", "val_labels")
_TEST = ("test_images", "test_labels")
_NAMES = "class_names"

LAYOUTS = ("auto", "NHWC", "NCHW")
_MOST_CHANNELS = 4  # of an image that needs no second look


class _Header(NamedTuple):
    """An array's shape and dtype, read without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def check(self, *, held: int):
        """Raises ValueError unless an array of this shape fits `held` bytes: NumPy allocates before it reads."""
        needed = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0 or needed > held:
            raise ValueError(f"{needed} bytes are claimed but {held} are there")


def npz(*, path: str, layout: Annotated[str, OneOf(LAYOUTS)] = "auto") -> Source:
    """Reads the arrays of one .npz file, as `numpy.savez` writes it.

    `train_images`, `test_images` and optionally `val_images`: uint8 [N, H, W] or [N, H, W, C]; [N, C, H, W] with
    `layout` "NCHW". "auto" refuses what looks like that. `train_labels`, `test_labels` and optionally `val_labels`:
    integers [N]; in train each of 0..K-1 occurs. Optionally `class_names`: text [K]. Raises DataError naming the
    invalid array. Of the test arrays only the labels are read until test is opened.
    """
    path = os.path.realpath(os.path.expanduser(path))
    headers = _npz_headers(path)
    parts = [_TRAIN, _TEST]
    if set(_VAL) & headers.keys():
        parts.append(_VAL)
    for images, labels in parts:
        _check_headers(path, headers, images=images, labels=labels)
    notes = _unused(path, headers, used={name for part in parts for name in part} | {_NAMES})
    if layout == "auto":
        _check_layout(path, headers["train_images"].shape)

    read = functools.partial(_read_npz_split, path, layout=layout)
    train = read(_TRAIN)
    num_classes = int(train.labels.max()) + 1
    counts = np.bincount(train.labels)
    if num_classes < 2 or not counts.all():
        held = ", ".join(str(label) for label in np.flatnonzero(counts)[:10])
        raise DataError(f"train_labels in {path} must be 0..K-1 without a gap, K at least 2, but are {held}; renumber")
    _check_labels(path, _TEST[1], _read_npz_array(path, _TEST[1]), num_classes=num_classes)
    names = tuple(str(label) for label in range(num_classes))
    if _NAMES in headers:
        names = _read_npz_names(path, headers[_NAMES], num_classes=num_classes)
    return Source(
        train=train,
        val=read(_VAL, num_classes=num_classes) if _VAL in parts else None,
        open_test=functools.partial(read, _TEST, num_classes=num_classes),
        class_names=names,
        skipped=(),
        test_fingerprint=_fingerprint_of_test(path, headers),
        notes=notes,
    )


def _fingerprint_of_test(path: str, headers: dict[str, _Header]) -> str:
    """The shapes of the test arrays and the checksums that the archive stores for them."""
    with _open_npz(path) as archive:
        return hashed([(headers[name].shape, archive.zip.getinfo(f"{name}.npy").CRC) for name in _TEST])


def _open_npz(path: str) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}; set config.data.source.path to an .npz file") from error
    except MemoryError:
        raise
    except Exception as error:  # `zipfile` and its decompressors may raise anything on a damaged file
        raise DataError(f"{path} is not a readable .npz file; write it again with numpy.savez") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds a single array, not the named arrays of an .npz; write it with numpy.savez")
    return archive


def _npz_headers(path: str) -> dict[str, _Header]:
    """The shape and dtype of each array, without reading any."""
    headers = {}
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with _open_npz(path) as archive:
        twice = [name for name, count in collections.Counter(archive.files).items() if count > 1]
        if twice:
            raise DataError(f"{path} holds two arrays of one name ({listed(twice)}); write it again with numpy.savez")
        for name in archive.files:
            try:
                with archive.zip.open(f"{name}.npy") as file:
                    shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
                headers[name] = _Header(shape, dtype)
                headers[name].check(held=min(archive.zip.getinfo(f"{name}.npy").file_size, memory_bytes() or math.inf))
            except MemoryError:
                raise
            except Exception as error:
                raise DataError(
                    f"{shown(name)} in {path} is not a readable array; write it again with numpy.savez"
                ) from error
    return headers


def _check_headers(path: str, headers: dict[str, _Header], *, images: str, labels: str) -> None:
    for name in (images, labels):
        if name not in headers:
            raise DataError(f"{path} has no array '{name}'; save it under that name (found: {', '.join(headers)})")
    shape, dtype = headers[images]
    if dtype != np.uint8:
        raise DataError(f"{images} in {path} is {dtype}; save it as uint8 in 0..255")
    if len(shape) not in (3, 4) or 0 in shape:
        raise DataError(f"{images} in {path} has shape {shape}; save it as [N, H, W] or [N, H, W, C], none of them 0")
    if shape[1:] != headers["train_images"].shape[1:]:
        raise DataError(
            f"{images} in {path} holds images of {shape[1:]} and train_images of {headers['train_images'].shape[1:]};"
            " resize them to one size"
        )
    count = shape[0]
    shape, dtype = headers[labels]
    if dtype.kind not in "iu":
        raise DataError(f"{labels} in {path} is {dtype}; save the class numbers as integers, such as int32")
    if shape != (count,):
        raise DataError(f"{labels} in {path} has shape {shape}; save one number for each image, shape ({count},)")


def _check_layout(path, shape):
    """Raises DataError for [N, H, W, C] that is rather [N, C, H, W]: more channels than rows, or rows like channels."""
    if len(shape) != 4 or shape[3] <= _MOST_CHANNELS:
        return
    _, height, width, channels = shape
    if height <= _MOST_CHANNELS or height != width and channels > height:
        raise DataError(
            f"train_images in {path} has shape {shape}, which as [N, H, W, C] is {channels} channels of"
            f" {height}x{width} pixels; if it is [N, C, H, W], set config.data.source.layout=NCHW, otherwise NHWC"
        )


def _unused(path, headers, *, used) -> tuple[str, ...]:
    """A line that names the arrays that are not used. Raises DataError for one that means a split by another name."""
    unused = [name for name in headers if name not in used]
    for name in unused:
        split, _, kind = name.rpartition("_")
        if meant_split(split) and kind in ("images", "labels"):
            raise DataError(f"{path} holds '{shown(name)}'; save it as '{meant_split(split)}_{kind}', or leave it out")
    return (f"not used: the arrays {listed(unused)} of {path}",) if unused else ()


def _read_npz_split(path: str, names: tuple[str, str], *, layout: str, num_classes: int | None = None) -> Split:
    images, labels = (_read_npz_array(path, name) for name in names)
    _check_labels(path, names[1], labels, num_classes=num_classes)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    elif layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return Split(images, labels.astype(np.int32))


def _check_labels(path: str, name: str, labels: np.ndarray, *, num_classes: int | None):
    last = (len(labels) if num_classes is None else num_classes) - 1
    wrong = labels[(labels < 0) | (labels > last)]
    if len(wrong):
        bounds = "0..K-1 for K classes" if num_classes is None else f"0..{last}, the classes of train_labels"
        raise DataError(f"{name} in {path} holds {wrong[0]}; labels must be {bounds}")


def _read_npz_names(path: str, header: _Header, *, num_classes: int) -> tuple[str, ...]:
    if header.dtype.kind != "U" or len(header.shape) != 1:
        raise DataError(f"class_names in {path} is {header.dtype} {header.shape}; save a list of text")
    if header.shape != (num_classes,):
        count = header.shape[0]
        raise DataError(
            f"class_names in {path} has {count} names and train_labels {num_classes} classes; give each a name"
        )
    names = tuple(str(name) for name in _read_npz_array(path, _NAMES))
    if len(set(names)) < num_classes:
        raise DataError(f"class_names in {path} holds a name twice; give each class a name of its own")
    return names


def _read_npz_array(path: str, name: str) -> np.ndarray:
    with _open_npz(path) as archive:
        try:
            return archive[name]
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(f"{name} in {path} is damaged; write it again with numpy.savez") from error
