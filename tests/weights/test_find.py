"""Weights by a file's name: what it is, whose it is, or one line that says what to do."""

import numpy as np
import pytest
import safetensors.numpy
from support import torch_files
from support.pretrained import tensors_of

from linseed.models import INPUTS
from linseed.trainer.errors import DataError
from linseed.trainer.weights.find import find, read


@pytest.fixture(scope="module")
def tensors():
    return tensors_of("resnet18", classes=10)


def write(path, tensors):
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    path.write_bytes(safetensors.numpy.save(whole) if path.suffix == ".safetensors" else torch_files.zipped(whole))
    return path


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18-5c106cde.pth", "RESNET18.bin"])
def test_a_file_tells_its_network_and_its_hash(tensors, name, tmp_path):
    found = find(str(write(tmp_path / name, tensors)))
    assert found.card.architecture == "resnet18" and len(found.card.sha256) == 64
    assert found.card.input == INPUTS["resnet18"] and found.card.name == str(tmp_path / name)
    assert all(np.array_equal(found.tensors[key], values) for key, values in tensors.items())


def test_the_network_that_is_asked_for_is_taken(tensors, tmp_path):
    assert find(str(write(tmp_path / "a.pth", tensors)), architecture="resnet34").card.architecture == "resnet34"


def test_home_is_expanded(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "resnet18.pth", tensors)
    assert find("~/resnet18.pth").card.name == str(tmp_path / "resnet18.pth")


def refusal(name):
    with pytest.raises(DataError) as caught:
        find(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_or_damaged_is_one_line(tensors, tmp_path):
    assert "no weights at lost.pth; give a file" in refusal("lost.pth")
    assert "no weights at a/b/c; give a file" in refusal("a/b/c")
    assert "no weights at ; give a file" in refusal("")
    whole = write(tmp_path / "resnet18.safetensors", tensors).read_bytes()
    for content in (b"", b"{}", b"\x08", whole[:1000], whole[:-8], b"GIF89a" + bytes(100)):
        (tmp_path / "cut.safetensors").write_bytes(content)
        assert "cut.safetensors is no whole file of safetensors" in refusal(tmp_path / "cut.safetensors")


def test_a_file_of_torch_that_is_not_read_comes_with_the_command_that_converts_it(tmp_path):
    (tmp_path / "w.pth").write_bytes(torch_files.zipped({"epoch": 1}))
    said = refusal(tmp_path / "w.pth")
    assert 'with torch: python -c "import sys, torch' in said and said.endswith(f"{tmp_path / 'w.safetensors'}")


def test_tensors_of_no_network_here(tmp_path):
    said = refusal(write(tmp_path / "mine.safetensors", {"my.weight": np.ones((3, 3), np.float32)}))
    assert "holds the tensors (my.weight ...) of no network that its name suggests" in said
    assert "say which it is: --config.model.name=NAME" in said


def test_networks_with_the_same_tensors_are_told_apart_by_the_name_or_asked_for(tmp_path):
    tensors = tensors_of("efficientnet_lite0", classes=10)
    assert find(str(write(tmp_path / "efficientnet_lite0_ra.pth", tensors))).card.architecture == "efficientnet_lite0"
    assert (
        find(str(write(tmp_path / "tf_efficientnet_lite0.pth", tensors))).card.architecture == "tf_efficientnet_lite0"
    )
    said = refusal(write(tmp_path / "efficientnet_lite.pth", tensors))
    assert "may be of efficientnet_lite0 and of tf_efficientnet_lite0; say which it is: --config.model.name=" in said


def test_bfloat16_is_read(tmp_path):
    import ml_dtypes

    values = np.arange(4).astype(ml_dtypes.bfloat16)
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save({"a": values}))
    assert np.array_equal(read(tmp_path / "a.safetensors")["a"], values)
