"""Files as `torch.save` writes them, without torch."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from unittest import mock

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


def zipped(content) -> bytes:
    """The file of `content`, in which arrays are tensors."""
    pickled, storages = _pickled(content, legacy=False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        for key, array in enumerate(storages):
            archive.writestr(f"weights/data/{key}", array.tobytes())
        archive.writestr("weights/version", "3\n")
    return file.getvalue()


def legacy(content) -> bytes:
    """The same in the format of torch before 1.6."""
    pickled, storages = _pickled(content, legacy=True)
    machine = dict(protocol_version=PROTOCOL, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    before = [pickle.dumps(each, protocol=2) for each in (MAGIC, PROTOCOL, machine)]
    after = pickle.dumps([str(key) for key in range(len(storages))], protocol=2)
    numbers = [struct.pack("<q", array.size) + array.tobytes() for array in storages]
    return b"".join([*before, pickled, after, *numbers])


def _pickled(content, *, legacy):
    """`content` as torch pickles it, and the arrays that its storages hold."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = types.FunctionType((lambda: None).__code__, {}, "_rebuild_tensor_v2")
    utils._rebuild_tensor_v2.__module__, utils._rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    storages = []

    class Storage:
        def __init__(self, array):
            self.array, self.key = array, len(storages)
            storages.append(array)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                kind = getattr(torch, _STORAGES[item.array.dtype.name])
                return ("storage", kind, str(item.key), "cpu", item.array.size, *([None] if legacy else []))

        def reducer_override(self, item):
            if not isinstance(item, np.ndarray):
                return NotImplemented
            strides = tuple(stride // item.itemsize for stride in item.strides)
            base = item if item.base is None else item.base
            arguments = (Storage(base), 0, item.shape, strides, False, collections.OrderedDict())
            return utils._rebuild_tensor_v2, arguments

    file = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(file, protocol=2).dump(content)
    return file.getvalue(), storages
