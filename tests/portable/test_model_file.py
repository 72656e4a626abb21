"""A model file is whole, the same everywhere, and refused in one line where it is not."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from linseed.trainer.errors import DataError
from linseed.trainer.portable import model_file
from linseed.trainer.weights import find

CARD = {"architecture": "cnn", "label_names": ["cat", '"sha256": "' + 64 * "0" + '"', "\udcff\x1b[31m"]}
TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.ones(3, np.float32),
    "count": np.array([7]),
}


@pytest.fixture
def path(tmp_path):
    model_file.write(tmp_path / "model.linseed", card=CARD, tensors=TENSORS)
    return tmp_path / "model.linseed"


def test_what_is_written_is_read(path):
    card, tensors = model_file.read(path)
    assert {key: card[key] for key in CARD} == CARD and card["format"] == model_file.FORMAT
    assert tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert tensors[name].dtype == values.dtype and np.array_equal(tensors[name], values)


def test_it_is_the_same_bytes_in_another_process_and_order(path):
    code = f"""if True:
        import numpy as np
        from pathlib import Path
        from linseed.trainer.portable import model_file
        tensors = {{"count": np.array([7]), "a": np.ones(3, np.float32)}}
        tensors["b.weight"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        model_file.write(Path("other.linseed"), card={CARD!r}, tensors=tensors)
    """
    subprocess.run([sys.executable, "-P", "-c", code], cwd=path.parent, check=True, env={"PYTHONHASHSEED": "7"})
    assert (path.parent / "other.linseed").read_bytes() == path.read_bytes()


def test_a_byte_that_changed_anywhere_is_seen(path):
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError) as refused:
            model_file.read(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_file_that_was_cut_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="no whole file of safetensors"):
        model_file.read(path)


def with_header(path, header, rest=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {}},
        b"[" * 100_000,
    ],
)
def test_sizes_that_are_claimed_take_no_memory(path, header):
    with_header(path, header, bytes(8))
    with pytest.raises(DataError, match="no whole file"):
        model_file.read(path)


def test_a_header_longer_than_the_file_takes_no_memory(path):
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="no whole file"):
        model_file.read(path)


def test_a_file_larger_than_the_memory_is_not_read(path, monkeypatch):
    monkeypatch.setattr("linseed.trainer.weights.find.memory_bytes", lambda: 100)
    with pytest.raises(DataError, match="this machine .* of memory"):
        model_file.read(path)


def test_other_files_are_refused_with_the_command_that_writes_one(path):
    path.write_bytes(safetensors.numpy.save(TENSORS, metadata={"linseed": '{"architecture": "cnn"}'}))
    with pytest.raises(DataError, match="is no model file; write one: linseed export"):
        model_file.read(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read .* check the path"):
        model_file.read(path)


def test_a_newer_format_says_so(path, monkeypatch):
    monkeypatch.setattr(model_file, "FORMAT", 3)
    model_file.write(path, card={**CARD, "versions": {"linseed": "9.1\x1b[0m"}}, tensors=TENSORS)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"format 3, made by a newer Linseed 9\.1\?\[0m.*pip install --upgrade"):
        model_file.read(path)


@pytest.mark.parametrize("begins", [b"\x80\x02", b"PK"])
def test_a_header_whose_length_begins_as_a_pickle_or_a_zip_is_read(path, begins):
    header = json.dumps({"__metadata__": {"a": ""}, "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    length = int.from_bytes(begins, "little")
    with_header(path, header.ljust(length).encode(), b"\x07")
    assert path.read_bytes()[:2] == begins and find.read(path)["b"].tolist() == [7]
