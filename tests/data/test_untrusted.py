"""Data and workdirs from anyone: nothing runs code, nothing leaves its folder, nothing fills the memory."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linseed.configs import digits
from linseed.scripts.bench.child import in_child
from linseed.scripts.faults import mutations
from linseed.scripts.faults.mutations import try_inputs
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import sources, stats
from linseed.trainer.data.decode import decode_as_it_is, decode_image
from linseed.trainer.data.sources import cifar_archive, tfds_stream, tfds_trust
from linseed.trainer.data.sources.tfds import tfds
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError, DataError, LinseedError, WorkdirError
from linseed.trainer.run import workdir as workdir_lib

ROOT = Path(__file__).parents[2]


def test_a_hundred_mutated_images_and_archives_are_read_or_left_out_and_counted():
    found = in_child(try_inputs, 100, seed=0, bounded=True, devices=1)
    assert found["failures"] == []
    assert found["loaded"] + found["skipped"] == 100 and min(found["loaded"], found["skipped"]) > 10
    assert 0 < found["resident_mb"] < 1024  # a bound that measures nothing would hold as well


def test_a_decoder_that_gives_no_image_or_fills_the_memory_is_a_failure(monkeypatch):
    def full(file):
        raise MemoryError

    decoders = {"full": full, "odd": lambda file: np.zeros((2, 2, 1), np.uint8)}
    monkeypatch.setattr(mutations, "_DECODERS", mutations._DECODERS | decoders)
    found = mutations.try_inputs(6, seed=0, bounded=False)
    for name in decoders:
        assert len([line for line in found["failures"] if f"{name}: " in line]) == 3
    assert len(found["failures"]) == 6


def test_memory_that_was_in_use_and_given_back_is_counted():
    code = """
from linseed.scripts.faults import mutations
before, fill = mutations._memory("VmRSS"), bytearray(b"x") * 2**27
del fill
print(mutations._memory("VmHWM") - before)
"""
    ballast = bytearray(b"x") * 2**28  # of this process, which is no part of the child's
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert len(ballast) > 1.5 * int(done.stdout) and int(done.stdout) > 0.9 * 2**27, done.stderr


def npz_with_header(path, *, shape):
    """An .npz whose `train_images` claims `shape`, over the values of six small images."""
    images = np.zeros((6, 4, 4, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(path, test_images=images, test_labels=labels, train_labels=labels)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", file.getvalue() + images.tobytes())


@pytest.mark.parametrize("shape", [(10**12, 4, 4, 3), (60, 4, 4, 3), (-6, 4, 4, 3)])
def test_an_npz_that_claims_more_than_it_holds_is_refused_before_room_is_made(tmp_path, shape):
    npz_with_header(tmp_path / "data.npz", shape=shape)
    with pytest.raises(DataError, match="train_images in .* is not a readable array"):
        sources.load("npz", path=str(tmp_path / "data.npz"))


def test_an_archive_member_larger_than_cifar_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_archive, "_LARGEST_MEMBER", 10)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("x")
        entry.size = 11
        archive.addfile(entry, io.BytesIO(bytes(11)))
    with pytest.raises(DataError, match="claims 11 bytes"):
        cifar_archive.read(tmp_path / "a.tar.gz", ["x"])


@pytest.mark.parametrize("format", ["EPS", "TIFF", "PDF"])
def test_formats_whose_decoders_are_not_wanted_are_refused_by_every_way_in(format):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format)
    for decode in (lambda: decode_image(file, image_size=0), lambda: decode_as_it_is(file, channels=3)):
        file.seek(0)
        with pytest.raises(OSError):
            decode()


def test_a_deep_grey_image_of_the_largest_size_takes_no_more_than_its_pixels_need():
    """Four bytes a pixel beside the image itself; 64-bit sums took eight, four times over."""
    import tracemalloc

    file = io.BytesIO()
    Image.fromarray(np.full((1000, 1000), 40_000, np.uint16)).save(file, "PNG")
    tracemalloc.start()
    try:
        decode_image(file, image_size=0)
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["someone:mine", "huggingface:mnist", "../mine", "mine/../..", "mine/a=1", ""])
def test_a_data_set_that_brings_code_or_leads_elsewhere_is_refused_by_name(tmp_path, name):
    with pytest.raises(DataError, match="should be NAME"):
        tfds(dataset=name, data_dir=str(tmp_path), train_split="train", test_split="test")


@pytest.mark.parametrize("name", ["cifar10", "mine", "mine/config-1", "mine:1.0.0", "mine/config:1.*.*"])
def test_plain_names_of_data_sets_pass(name):
    tfds_trust.check_name(name)


def trapped(folder, tmp_path, monkeypatch, *, key="pythonClassName"):
    """A prepared data set in `folder`, whose features are of a class that ends the process where it is imported."""
    folder.mkdir(parents=True)
    (tmp_path / "trap_of_features.py").write_text("raise SystemExit('sprung')")
    monkeypatch.syspath_prepend(tmp_path)
    inner = {"featuresDict": {"features": {"image": {key: "trap_of_features.Image"}}}}
    top = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", **inner}
    (folder / "features.json").write_text(json.dumps(top))
    (folder / "dataset_info.json").write_text(json.dumps({"name": "mine", "version": "1.0.0"}))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_features_of_a_class_from_elsewhere_import_nothing(tmp_path, monkeypatch, key):
    trapped(tmp_path / "data" / "mine" / "1.0.0", tmp_path, monkeypatch, key=key)
    with pytest.raises(DataError, match="trap_of_features.Image"):
        tfds(dataset="mine", data_dir=str(tmp_path / "data"), train_split="train", test_split="test")
    assert "trap_of_features" not in sys.modules


@pytest.mark.parametrize("linked", ["version", "data set", "file", "folder above"])
def test_features_behind_a_link_import_nothing(tmp_path, monkeypatch, linked):
    data = tmp_path / "data"
    trapped(data / "other" / "1.0.0", tmp_path, monkeypatch)
    version = data / "mine" / "1.0.0"
    link, to = {
        "version": (version, data / "other" / "1.0.0"),
        "data set": (data / "mine", data / "other"),
        "file": (version / "features.json", data / "other" / "1.0.0" / "features.json"),
        "folder above": (data / "mine" / "config", data / "other"),
    }[linked]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(to)
    if linked == "file":
        (version / "dataset_info.json").write_text(json.dumps({"name": "mine", "version": "1.0.0"}))
    words = {"data set": "trap_of_features.Image", "file": "leaves the data folder"}
    name = "mine/config" if linked == "folder above" else "mine"
    with pytest.raises(DataError, match=words.get(linked, "is a link to a folder")) as caught:
        tfds(dataset=name, data_dir=str(data), train_split="train", test_split="test")
    assert "trap_of_features" not in sys.modules and "\n" not in str(caught.value)


def test_a_pipe_among_the_files_of_a_data_set_is_not_waited_for(tmp_path):
    version = tmp_path / "mine" / "1.0.0"
    version.mkdir(parents=True)
    os.mkfifo(version / "features.json")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        tfds(dataset="mine", data_dir=str(tmp_path), train_split="train", test_split="test")


def test_a_link_within_a_data_set_and_one_to_it_are_no_danger(tmp_path):
    version = tmp_path / "elsewhere" / "1.0.0"
    version.mkdir(parents=True)
    (version / "features.json").write_text("{}")
    (version / "again.json").symlink_to("features.json")
    (tmp_path / "mine").symlink_to("elsewhere")
    tfds_trust.check_features(tmp_path / "mine")
    tfds_trust.check_features(tmp_path / "not there")


def test_files_of_a_data_set_outside_its_folder_are_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "outside").touch()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inside").touch()
    tfds_trust.check_inside([str(folder / "inside")], str(folder))
    for file in ("link", "../outside"):
        with pytest.raises(DataError, match="leaves the data folder"):
            tfds_trust.check_inside([str(folder / file)], str(folder))


class OfThreeClasses:
    """As much of a TFDS builder as the kept labels ask for."""

    def __init__(self, folder):
        feature = type("Feature", (), {"num_classes": 3})
        self.data_dir, self.name = str(folder), "mine"
        self.info = type("Info", (), {"features": {"label": feature}})


def array_file(header):
    """The beginning of an .npy file whose header reads so."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()


HEADERS = {
    "beyond integers": "{'descr': '|u1', 'fortran_order': False, 'shape': (1" + "0" * 30 + ",)}",
    "cut off": "{'descr': '<i4', 'fortran_order': False, 'shape': (4,",
    "no types": "{'descr': [1], 'fortran_order': False, 'shape': (4,)}",
    "nested": "[" * 3000,
    "truth": "{'descr': '<i4', 'fortran_order': False, 'shape': (True, -4)}",
}


@pytest.mark.parametrize("content", ["out of range", "zip", "huge", "text", "none", "long", "pipe", *HEADERS])
def test_kept_labels_that_are_not_what_was_kept_are_read_again(tmp_path, monkeypatch, content):
    examples = type(
        "Examples", (), {"__len__": lambda _: 4, "__getitems__": lambda _, some: [{"label": 1}] * len(some)}
    )
    monkeypatch.setattr(tfds_stream, "open_encoded", lambda *_, **__: examples())
    records = type("Records", (), {"files": ["a"], "__len__": lambda _: 4})()
    labels = lambda: tfds_stream._labels(  # noqa: E731
        OfThreeClasses(tmp_path), "train", records, image_key="image", label_key="label"
    )
    np.testing.assert_array_equal(labels(), [1, 1, 1, 1])
    (kept,) = tmp_path.iterdir()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": (10**13,)})
    out_of_range = io.BytesIO()
    np.save(out_of_range, np.array([0, 1, 2, 3], np.int32))
    long = array_file(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**40},)}}")
    data = {
        "out of range": out_of_range.getvalue(),
        "zip": b"PK\3\4",
        "huge": header.getvalue(),
        "text": b"x",
        "none": b"",
        "long": long,
        "pipe": b"",
        **{name: array_file(text) for name, text in HEADERS.items()},
    }
    kept.write_bytes(data[content])
    if content == "long":
        os.truncate(kept, 2**40 + len(long))  # a hole, which takes no disk, and would fill the memory
    if content == "pipe":
        kept.unlink()
        os.mkfifo(kept)
    np.testing.assert_array_equal(labels(), [1, 1, 1, 1])


def test_labels_are_never_kept_through_a_link_that_lies_there(tmp_path, monkeypatch):
    examples = type(
        "Examples", (), {"__len__": lambda _: 4, "__getitems__": lambda _, some: [{"label": 1}] * len(some)}
    )
    monkeypatch.setattr(tfds_stream, "open_encoded", lambda *_, **__: examples())
    records = type("Records", (), {"files": ["a"], "__len__": lambda _: 4})()
    (tmp_path / "data").mkdir()
    (tmp_path / "precious").write_text("precious")
    read = lambda: tfds_stream._labels(  # noqa: E731
        OfThreeClasses(tmp_path / "data"), "train", records, image_key="image", label_key="label"
    )
    read()
    (kept,) = (tmp_path / "data").iterdir()
    kept.unlink()
    kept.symlink_to(tmp_path / "precious")
    read()
    assert (tmp_path / "precious").read_text() == "precious" and not kept.is_symlink()


def test_a_digit_of_the_kept_statistics_that_changed_is_noticed(tmp_path):
    split = Split(np.full((4, 2, 2, 1), 51, np.uint8), np.zeros(4, np.int32))
    cache = tmp_path / "statistics.json"
    take = lambda: stats.statistics(split, "channel_mean", mean=(), std=(), cache=cache)["mean"]  # noqa: E731
    expected = take()
    cache.write_text(cache.read_text().replace("0.2", "0.3", 1))
    np.testing.assert_array_equal(take(), expected)


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(WorkdirError, match="lock is a link"), workdir_lib.lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    "text", ['{"model": {}, "optimizer": {}, "a.b": 1}', '{"model": 1, "optimizer": 2, "__class__": 3}']
)
def test_a_config_json_with_keys_that_no_config_has_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match="is not the config of a run"):
        workdir_lib.read_config(tmp_path)


def test_a_damaged_config_json_gives_way_to_the_config_given_when_told_to(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    config = resolve(digits.get_config())
    with pytest.raises(WorkdirError, match="is damaged.*--on_config_change=accept"):
        workdir_lib.check_config(tmp_path, config, on_change="refuse")
    assert workdir_lib.check_config(tmp_path, config, on_change="accept")
    workdir_lib.write_config(tmp_path, config)
    assert workdir_lib.read_config(tmp_path).optimizer.lr == config.optimizer.lr
    assert (tmp_path / "config.1.json").read_text() == '{"seed": '


def test_a_synthetic_problem_beyond_the_memory_is_refused_before_it_is_drawn():
    settings = dict(num_examples=10**9, num_classes=10, image_size=1000, channels=3, seed=0)
    with pytest.raises((ConfigError, DataError)) as caught:
        sources.load("synthetic", **settings)
    assert isinstance(caught.value, LinseedError) and "GB" in str(caught.value)
