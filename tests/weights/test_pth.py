"""Files of torch are read without torch, and nothing that they name is run."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from support import torch_files

from linseed.trainer.weights import pth

TENSORS = collections.OrderedDict(
    {
        "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "half": np.linspace(0, 1, 5).astype(np.float16),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "scalar": np.array(7),
        "none": np.zeros((0, 3), np.float32),
    }
)


def equal(found, wanted):
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values), name


@pytest.mark.parametrize("write", [torch_files.zipped, torch_files.legacy])
def test_tensors_come_as_they_were_saved(write):
    equal(pth.read(write(TENSORS)), TENSORS)


@pytest.mark.parametrize("place", ["state_dict", "model", "model_state_dict"])
def test_what_training_scripts_put_around_them_is_left(place):
    module = {f"module.{name}": values for name, values in TENSORS.items()}
    equal(pth.read(torch_files.zipped({"epoch": 3, place: module, "best": 0.5})), TENSORS)


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch DONE"),
        (eval, "open('DONE', 'w')"),
        (os.mkdir, "DONE"),
        (getattr, "text", "upper"),
        (pickle.loads, b"\x80\x02K\x01."),
    ],
    ids=lambda call: call[0].__name__,
)
@pytest.mark.parametrize("write", [torch_files.zipped, torch_files.legacy])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(write, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pth.NotWeights, match=rf"would run \S*\.{call[0].__name__} where it is loaded"):
        pth.read(write({"weights": Runs(*call), **TENSORS}))
    assert not list(tmp_path.iterdir())


def test_also_in_the_parts_before_and_after_the_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = torch_files.legacy(TENSORS)
    magic = pickle.dumps(torch_files.MAGIC, protocol=2)
    evil = pickle.dumps(Runs(os.mkdir, "DONE"), protocol=2)
    with pytest.raises(pth.NotWeights, match="would run"):
        pth.read(magic + evil + whole[len(magic) :])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [torch_files.zipped, torch_files.legacy])
def test_a_file_cut_anywhere_is_refused(write):
    whole = write(TENSORS)
    for end in range(2, len(whole) - 1, 37):
        with pytest.raises(pth.NotWeights):
            pth.read(whole[:end])


@pytest.mark.parametrize("write", [torch_files.zipped, torch_files.legacy])
def test_a_flipped_byte_is_refused_or_changes_numbers_alone(write):
    whole = write(TENSORS)
    for place in range(16, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        try:
            found = pth.read(bytes(damaged))
        except pth.NotWeights:
            continue
        assert sum(values.size for values in found.values()) <= len(whole)


def lying(*, shape=(2, 3), strides=(3, 1), offset=0):
    """A file whose tensor claims another place in its six numbers."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = torch_files.zipped({"a": array})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("weights/data.pkl")
    old = b"K\x00K\x02K\x03\x86q"  # offset 0, (2, 3)
    assert old in pickled
    new = b"K" + bytes([offset]) + b"K" + bytes([shape[0]]) + b"K" + bytes([shape[1]]) + b"\x86q"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", pickled.replace(old, new).replace(b"K\x03K\x01\x86q", _pair(strides)))
        archive.writestr("weights/data/0", array.tobytes())
    return file.getvalue()


def _pair(numbers):
    return b"K" + bytes([numbers[0]]) + b"K" + bytes([numbers[1]]) + b"\x86q"


def test_a_tensor_stays_within_its_numbers():
    assert pth.read(lying())["a"].shape == (2, 3)
    for lie in (dict(shape=(3, 3)), dict(offset=1), dict(strides=(4, 1)), dict(shape=(200, 200), strides=(0, 0))):
        with pytest.raises(pth.NotWeights, match="reaches beyond"):
            pth.read(lying(**lie))


def test_what_is_no_file_of_tensors_is_named():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(pth.NotWeights, match="without tensors"):
        pth.read(file.getvalue())
    with pytest.raises(pth.NotWeights, match="holds no tensors"):
        pth.read(torch_files.zipped({"epoch": 3}))
    with pytest.raises(pth.NotWeights, match="pickle that torch.save did not write"):
        pth.read(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(1000))
    with pytest.raises(pth.NotWeights, match="compressed"):
        pth.read(packed.getvalue())
