import errno
import logging
import os

import numpy as np
import pytest
from PIL import Image

from linseed.trainer.config.resolve import resolve
from linseed.trainer.data.sources.folder import folder
from linseed.trainer.errors import ConfigError, DataError

PER_CLASS = 5


def write_image(path, pixels=None, *, size=(6, 6), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8) if pixels is None else pixels).save(path)


def write_split(root, classes=("cat", "dog"), *, per_class=PER_CLASS, first_value=0):
    """Images of one value each: 0, 1, 2, ... in the order of classes and then of files."""
    for label, name in enumerate(classes):
        for i in range(per_class):
            write_image(root / name / f"{i:03}.png", value=first_value + label * per_class + i)


def read(root, **changes):
    settings = dict(image_size=0, test_fraction=0.2, split_seed=0, on_bad_image="error") | changes
    return folder(root=str(root), **settings)


def values(split):
    """The value of each image; all pixels of an image must have it."""
    assert (split.images == split.images[:, :1, :1, :1]).all()
    return split.images[:, 0, 0, 0].tolist()


def error_of(call):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    return message


@pytest.fixture
def splits(tmp_path):
    write_split(tmp_path / "train")
    write_split(tmp_path / "val", per_class=2, first_value=50)
    write_split(tmp_path / "test", per_class=3, first_value=100)
    return tmp_path


# Layouts.


def test_three_splits_are_read_in_order_of_class_and_file(splits):
    source = read(splits)
    assert source.class_names == ("cat", "dog")
    assert values(source.train) == list(range(10))
    assert source.train.labels.tolist() == [0] * 5 + [1] * 5
    assert values(source.val) == [50, 51, 52, 53]
    assert source.val.labels.tolist() == [0, 0, 1, 1]
    assert values(source.open_test()) == [100, 101, 102, 103, 104, 105]
    assert source.skipped == ()
    for split in (source.train, source.val, source.open_test()):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.shape == (len(split.labels), 6, 6, 3)


@pytest.mark.parametrize("below", ["", "train"])
def test_without_a_test_folder_test_is_carved_and_shares_no_image(tmp_path, below):
    write_split(tmp_path / below, per_class=10)
    source = read(tmp_path, test_fraction=0.3)
    train, test = values(source.train), values(source.open_test())
    assert sorted(train + test) == list(range(20))
    assert np.bincount(source.open_test().labels).tolist() == [3, 3]
    assert [value // 10 for value in test] == source.open_test().labels.tolist()
    assert source.val is None
    assert values(read(tmp_path, test_fraction=0.3, split_seed=1).open_test()) != test


def test_with_a_test_folder_the_fraction_is_not_used(splits):
    assert values(read(splits, test_fraction=0.2).train) == values(read(splits, test_fraction=0.9).train)


def test_the_order_of_files_does_not_depend_on_the_order_of_writing(tmp_path):
    for name in ("b", "a"):
        for i in (2, 0, 1):
            write_image(tmp_path / "train" / name / f"{i}.png", value=i + 10 * (name == "b"))
    write_split(tmp_path / "test", ("a", "b"))
    assert values(read(tmp_path).train) == [0, 1, 2, 10, 11, 12]


def test_hidden_files_and_folders_are_passed_over(splits):
    (splits / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (splits / "train" / ".cache").mkdir()
    (splits / ".git").mkdir()
    assert len(read(splits).train.labels) == 10


def test_a_class_without_val_or_test_images_keeps_the_labels_of_train(splits):
    for split in ("val", "test"):
        for file in (splits / split / "cat").iterdir():
            file.unlink()
        (splits / split / "cat").rmdir()
    source = read(splits)
    assert set(source.val.labels) == set(source.open_test().labels) == {1}


# Sizes.


def test_image_size_brings_all_to_one_size(splits):
    write_image(splits / "train" / "cat" / "wide.png", size=(6, 40), value=255)
    source = read(splits, image_size=4)
    assert source.train.images.shape == (11, 4, 4, 3)
    assert source.open_test().images.shape[1:] == (4, 4, 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_differing_sizes_without_image_size_name_two_files(splits, split):
    write_image(splits / split / "dog" / "wide.png", size=(6, 8))
    message = error_of(lambda: read(splits))
    assert "train/cat/000.png is 6x6" in message and f"{split}/dog/wide.png is 6x8" in message
    assert "config.data.source.image_size" in message


def test_a_size_that_only_test_has_is_found_when_test_is_opened(splits):
    write_image(splits / "test" / "dog" / "wide.png", size=(6, 8))
    assert "test/dog/wide.png is 6x8" in error_of(read(splits).open_test)


def test_more_images_than_memory_is_an_error_and_not_a_kill(splits, monkeypatch):
    monkeypatch.setattr("linseed.trainer.data.dataset.memory_bytes", lambda: 1000)
    assert "image_size" in error_of(lambda: read(splits))


# Bad images.

DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an image"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "broken link": lambda path: (path.unlink(), path.symlink_to(path.parent / "nowhere")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_bad_image_is_named_or_left_out(splits, damage):
    DAMAGE[damage](splits / "train" / "cat" / "001.png")
    message = error_of(lambda: read(splits))
    assert message.startswith("1 of 14 images") and "train/cat/001.png" in message
    assert "config.data.source.on_bad_image=skip" in message
    source = read(splits, on_bad_image="skip")
    assert values(source.train) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert source.train.labels.tolist() == [0] * 4 + [1] * 5
    assert len(source.skipped) == 1 and source.skipped[0].startswith("train/cat/001.png: ")


def test_many_bad_images_are_counted_and_the_first_named(splits):
    for i in range(5):
        DAMAGE["text"](splits / "train" / "dog" / f"{i:03}.png")
    message = error_of(lambda: read(splits))
    assert message.startswith("5 of 14 images")
    assert "train/dog/002.png" in message and "train/dog/003.png" not in message and "..." in message


def test_bad_images_of_val_are_skipped_and_reported(splits):
    DAMAGE["text"](splits / "val" / "dog" / "000.png")
    source = read(splits, on_bad_image="skip")
    assert values(source.val) == [50, 51, 53]
    assert [line.split(":")[0] for line in source.skipped] == ["val/dog/000.png"]


def test_the_first_image_may_be_bad(splits):
    DAMAGE["text"](splits / "train" / "cat" / "000.png")
    assert values(read(splits, on_bad_image="skip").train) == list(range(1, 10))


def test_a_bad_image_is_skipped_alike_with_and_without_resizing(splits):
    DAMAGE["truncated"](splits / "train" / "cat" / "000.png")
    assert read(splits, on_bad_image="skip", image_size=5).skipped == read(splits, on_bad_image="skip").skipped


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"truncated"}))
def test_a_test_image_without_a_header_is_found_before_training(splits, damage):
    DAMAGE[damage](splits / "test" / "dog" / "000.png")
    message = error_of(lambda: read(splits))
    assert message.startswith("1 of 6 images") and "test/dog/000.png" in message
    assert "on_bad_image=skip --on_config_change=accept" in message
    assert len(read(splits, on_bad_image="skip").open_test().labels) == 5


def test_a_truncated_test_image_is_found_when_test_is_opened(splits):
    DAMAGE["truncated"](splits / "test" / "dog" / "000.png")
    message = error_of(read(splits).open_test)
    assert message.startswith("1 of 6 images") and "test/dog/000.png" in message
    assert "on_bad_image=skip --on_config_change=accept" in message


def test_the_fingerprint_of_test_is_of_names_sizes_and_labels(splits):
    first = read(splits).test_fingerprint
    assert first == read(splits).test_fingerprint != ""
    image = splits / "test" / "dog" / "000.png"
    image.rename(image.with_name("other.png"))
    renamed = read(splits).test_fingerprint
    image.with_name("other.png").rename(splits / "test" / "cat" / "other.png")
    moved = read(splits).test_fingerprint
    write_image(splits / "test" / "cat" / "other.png", size=(6, 6), value=7)
    assert len({first, renamed, moved}) == 3
    DAMAGE["truncated"](splits / "test" / "cat" / "other.png")
    assert read(splits).test_fingerprint not in (first, renamed, moved)


def test_skipped_test_images_are_logged(splits, caplog):
    DAMAGE["text"](splits / "test" / "dog" / "000.png")
    source = read(splits, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        assert values(source.open_test()) == [100, 101, 102, 104, 105]
    assert "1 of 6 test images" in caplog.text and "test/dog/000.png" in caplog.text
    assert source.skipped == ()


def test_no_test_image_is_decoded_by_loading(splits, monkeypatch):
    opened = []

    def spy(file, **settings):
        opened.append(os.path.relpath(file, splits).split(os.sep)[0])
        return np.zeros((6, 6, 3), np.uint8)

    monkeypatch.setattr("linseed.trainer.data.sources.folder.decode_image", spy)
    source = read(splits)
    assert set(opened) == {"train", "val"}
    source.open_test()
    assert "test" in opened


def test_carving_does_not_depend_on_which_images_are_bad(tmp_path):
    write_split(tmp_path, per_class=10)
    before = values(read(tmp_path).open_test())
    source = read(tmp_path)
    bad = values(source.train)[0]
    DAMAGE["text"](tmp_path / "cat" / f"{bad:03}.png")
    assert values(read(tmp_path, on_bad_image="skip").open_test()) == before


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=repr)
@pytest.mark.parametrize("image_size", [0, 4])
def test_a_fault_of_the_machine_leaves_no_image_out(splits, monkeypatch, fault, image_size):
    def fail(*args, **kwargs):
        raise fault

    monkeypatch.setattr("linseed.trainer.data.sources.folder.decode_image", fail)
    message = error_of(lambda: read(splits, on_bad_image="skip", image_size=image_size))
    assert "cannot be read now" in message and "run the same command again" in message


def test_a_decompression_bomb_is_a_bad_image(splits, monkeypatch):
    monkeypatch.setattr("linseed.trainer.data.image_file.MAX_PIXELS", 40)
    write_image(splits / "train" / "cat" / "big.png", size=(7, 6))
    assert "cat/big.png" in read(splits, on_bad_image="skip").skipped[0]


def test_an_image_with_odd_metadata_is_not_bad_even_when_warnings_are_errors(splits):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.fromarray(np.full((6, 6, 3), 9, np.uint8)).save(splits / "train" / "cat" / "000.jpg", exif=exif)
    assert len(read(splits).train.labels) == 11


def test_a_file_name_cannot_break_the_line(splits):
    (splits / "train" / "cat" / "a\nb.png").write_text("bad")
    assert "a?b.png" in error_of(lambda: read(splits))
    assert "\n" not in read(splits, on_bad_image="skip").skipped[0]


def test_a_class_of_bad_images_only_is_an_error_even_when_skipping(splits):
    for i in range(PER_CLASS):
        DAMAGE["text"](splits / "train" / "dog" / f"{i:03}.png")
    assert "'dog'" in error_of(lambda: read(splits, on_bad_image="skip"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_bad_images_only_is_an_error_even_when_skipping(splits, split):
    for file in (splits / split).glob("*/*"):
        DAMAGE["text"](file)
    assert split in error_of(lambda: read(splits, on_bad_image="skip").open_test())


# Links.


def test_a_file_link_out_of_the_folder_is_bad(splits, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.png"
    write_image(secret, value=77)
    (splits / "train" / "cat" / "link.png").symlink_to(secret)
    assert "train/cat/link.png (leaves the data folder)" in error_of(lambda: read(splits))
    source = read(splits, on_bad_image="skip")
    assert source.skipped == ("train/cat/link.png: leaves the data folder",)
    assert 77 not in values(source.train)


def test_a_class_link_out_of_the_folder_is_bad(splits, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_split(outside, ("bird",))
    (splits / "train" / "bird").symlink_to(outside / "bird")
    assert "train/bird (leaves the data folder)" in error_of(lambda: read(splits))


def test_a_split_link_out_of_the_folder_is_refused(splits, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_split(outside / "train")
    for root in (outside, splits):
        linked = tmp_path_factory.mktemp("linked")
        (linked / "train").symlink_to(root / "train")
        assert "train/ is a link that leaves" in error_of(lambda linked=linked: read(linked))


def test_links_inside_the_folder_and_a_linked_root_are_followed(splits, tmp_path_factory):
    (splits / "train" / "cat" / "link.png").symlink_to(splits / "train" / "cat" / "000.png")
    linked = tmp_path_factory.mktemp("linked") / "root"
    linked.symlink_to(splits)
    assert len(read(linked).train.labels) == 11


# What is missing.


def test_a_missing_folder(tmp_path):
    assert "config.data.source.root" in error_of(lambda: read(tmp_path / "nowhere"))
    assert "config.data.source.root" in error_of(lambda: read(""))


def test_a_folder_without_class_folders(tmp_path):
    write_image(tmp_path / "0.png")
    assert "no class folders" in error_of(lambda: read(tmp_path))
    (tmp_path / "train").mkdir()
    assert "no class folders" in error_of(lambda: read(tmp_path))


def test_a_single_class(tmp_path):
    write_split(tmp_path, ("cat",))
    assert "one class, 'cat'" in error_of(lambda: read(tmp_path))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_class_folder(splits, split):
    (splits / split / "cat" / ".hidden").touch()
    for file in (splits / split / "cat").glob("*.png"):
        file.unlink()
    assert f"class folder {split}/cat holds no images" in error_of(lambda: read(splits))


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_folder(splits, split):
    for path in sorted((splits / split).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert f"{split} holds no class folders" in error_of(lambda: read(splits))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_does_not_have(splits, split):
    write_split(splits / split, ("bird",))
    message = error_of(lambda: read(splits))
    assert f"{split}/" in message and "'bird'" in message


def test_test_without_train(tmp_path):
    write_split(tmp_path / "test")
    assert "no train/" in error_of(lambda: read(tmp_path))


@pytest.mark.parametrize("name, cure", [("validation", "val"), ("Valid", "val"), ("training", "train")])
def test_a_split_by_another_name_is_not_passed_over(tmp_path, name, cure):
    write_split(tmp_path / "test")
    write_split(tmp_path / name)
    message = error_of(lambda: read(tmp_path))
    assert f"'{name}'" in message and f"'{cure}'" in message


def test_a_class_too_small_to_carve_from_is_named(tmp_path):
    write_split(tmp_path)
    write_split(tmp_path, ("bird",), per_class=1)
    assert "class 'bird' has 1 image" in error_of(lambda: read(tmp_path))


SETTINGS = [("test_fraction", 1.0), ("split_seed", -1), ("on_bad_image", "skp"), ("fit", "pat"), ("bits", 17)]


@pytest.mark.parametrize("key, value", [*SETTINGS, ("background", "red")])
def test_a_setting_out_of_its_range_is_a_config_error(key, value):
    with pytest.raises(ConfigError, match=f"config.data.source.{key}={value!r} should be"):
        resolve({"data": {"source": {"name": "folder", "root": "photos", key: value}}})
