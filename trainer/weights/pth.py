"""Reads what `torch.save` wrote, without torch and without running anything that the file names.

A pickle can name any function and have it called. Here it may name those of a short list, each of which stands for its
namesake in torch and only notes its arguments.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from linseed.trainer.errors import DataError

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch pickled first, before 1.6

# The classes of storages, by which a file says what its numbers are.
_TYPES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}

# Where training scripts put the weights, beside the state of the optimiser.
_PLACES = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."  # of a network that was trained on several devices


class NotWeights(DataError):
    """A file that is damaged, or holds something else than tensors; the message goes after the file's name."""


class DamagedWeights(NotWeights):
    """A file that is not what was written."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers


class _Dict(dict):
    """An OrderedDict whose attributes, which torch saves with it, are dropped."""

    def __setstate__(self, state):
        pass


def _tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{("torch", name): np.dtype(dtype) for name, dtype in _TYPES.items()},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise NotWeights(f"would run {module}.{name} where it is loaded, and is not read") from None

    def persistent_load(self, reference):
        _, dtype, key, _, count, *_ = reference
        return _Storage(str(key), dtype, int(count))


def is_torch(head: bytes) -> bool:
    """Whether a file that begins with `head` is one of `torch.save`, or another pickle or zip file."""
    return head.startswith((b"PK", b"\x80"))


def read(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file's content, by name; views of it where that can be.

    Raises NotWeights for content that is damaged or names anything but tensors.
    """
    try:
        found, storage = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
        tensors = _state_dict(found)
        return {name: _array(tensor, storage) for name, tensor in tensors.items()}
    except NotWeights:
        raise
    except Exception as error:  # an unpickler may raise anything on damaged bytes
        raise DamagedWeights(f"is damaged or cut off ({type(error).__name__}); fetch it again") from error


def _read_zip(data: bytes) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """What was pickled, and a function that gives the numbers of a storage."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    pickled = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickled) != 1:
        raise NotWeights("is a zip file without tensors of torch; give the file that torch.save wrote")
    folder = pickled[0].removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise DamagedWeights("is compressed, which torch.save never does; fetch it again")

    def numbers(storage):
        return np.frombuffer(archive.read(f"{folder}data/{storage.key}"), storage.dtype, storage.count)

    return _Reader(io.BytesIO(archive.read(pickled[0]))).load(), numbers


def _read_legacy(data: bytes) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    if not data.startswith(_LEGACY):
        raise NotWeights("is a pickle that torch.save did not write; give a file of tensors")
    file = io.BytesIO(data)
    _, _, _, found, keys = (_Reader(file).load() for _ in range(5))  # magic number, version, machine, content, storages
    starts, position = {}, file.tell()
    sizes = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in _state_dict(found).values()}
    for key in keys:
        (count,) = np.frombuffer(data, "<i8", 1, position)
        starts[key], position = position + 8, position + 8 + int(count) * sizes.get(key, 0)

    def numbers(storage):
        return np.frombuffer(data, storage.dtype, storage.count, starts[storage.key])

    return found, numbers


def _state_dict(found: Any) -> dict[str, _Tensor]:
    """The tensors of what was pickled, without what training scripts put around them."""
    for place in _PLACES:
        if isinstance(found, Mapping) and isinstance(found.get(place), Mapping):
            found = found[place]
    tensors = {}
    if isinstance(found, Mapping):
        tensors = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, _Tensor)}
    if not tensors:
        raise NotWeights("holds no tensors by name; give a file of a network's state_dict()")
    if all(key.startswith(_PREFIX) for key in tensors):
        tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    return tensors


def _array(tensor: _Tensor, numbers: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """The tensor, whose place in its storage is checked: NumPy would read beyond it."""
    storage, shape, strides = numbers(tensor.storage), tensor.shape, tensor.strides
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    inside = min((0, tensor.offset, *shape, *strides)) == 0 and last < len(storage)
    if not math.prod(shape):
        return np.empty(shape, storage.dtype)
    if not inside or math.prod(shape) > len(storage):
        raise DamagedWeights("has a tensor that reaches beyond its numbers; fetch it again")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps, writeable=False)
