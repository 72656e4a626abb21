"""What is read otherwise than one may expect is said, with its share, and the key that is named changes it."""

import numpy as np
import pytest
from PIL import Image

from linseed.trainer.data import sources
from linseed.trainer.data.decode import PLAIN

RNG = np.random.default_rng(0)
SIDE = 12


def pixels(height=SIDE, width=SIDE, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def deep(bits=12):
    return RNG.integers(0, 2**bits, (SIDE, SIDE)).astype(np.uint16)


@pytest.fixture(params=["folder", "folder_stream"])
def load(request, tmp_path):
    """Loads class folders: a class of plain images, and one of `odd` images, all of them in train."""

    def call(odd, **settings):
        for split in ("train", "val", "test"):
            for i in range(3):
                for name, make in (("plain", pixels), ("odd", odd)):
                    path = tmp_path / split / name / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not path.exists():
                        Image.fromarray(make()).save(path)
        if request.param == "folder_stream":
            settings = {"resize": settings.get("image_size", 8), "image_size": 8, "train_crop": "centre"} | settings
        return sources.load(request.param, root=str(tmp_path), **{"image_size": 8} | settings)

    return call


CASES = {
    "bits": (deep, "have 16 bits, of which their values use 12", ("bits", 12)),
    "background": (lambda: pixels(channels=4), "have transparency and are laid on white", ("background", "black")),
    "fit": (lambda: pixels(40, 600), "lose over a quarter of their pixels", ("fit", "pad")),
}


@pytest.mark.parametrize("case", CASES)
def test_each_is_said_once_with_its_share_and_a_key_that_changes_it(load, case):
    make, words, (key, value) = CASES[case]
    before = load(make)
    (note,) = before.notes
    assert "3 of 6 training images looked at (50%)" in note and words in note and f"--config.data.source.{key}=" in note
    after = load(make, **{key: value})
    assert words not in "".join(after.notes)
    for split in ("train", "val"):
        old, new = (np.asarray(getattr(source, split).images) for source in (before, after))
        odd = getattr(before, split).labels == before.class_names.index("odd")
        assert (old[~odd] == new[~odd]).all() and (old[odd] != new[odd]).any()
    assert (np.asarray(before.open_test().images) != np.asarray(after.open_test().images)).any()


def test_plain_images_say_nothing(load):
    assert load(lambda: pixels(9, 12)).notes == ()


def test_16_bits_in_full_use_say_nothing(load):
    assert load(lambda: deep(16)).notes == ()


def test_the_least_that_is_kept_is_named(load):
    (note,) = load(lambda: pixels(40, 600)).notes
    assert "train/odd/0.png keeps 7%" in note


def test_a_bad_image_is_left_to_decoding(load, tmp_path):
    load(pixels)
    (tmp_path / "train" / "odd" / "1.png").write_bytes(b"")
    assert load(pixels, on_bad_image="skip").notes == ()


def test_sources_read_as_before_unless_told_otherwise():
    import inspect

    for name in ("folder", "folder_stream", "tfds_stream"):
        parameters = inspect.signature(sources.SOURCES[name]).parameters
        assert {key: parameters[key].default for key in PLAIN._fields} == PLAIN._asdict()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_memory_and_stream_decode_alike(tmp_path, fit):
    for name in ("cat", "dog"):
        for i in range(4):
            path = tmp_path / name / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels(30 + 10 * i, 64)).save(path)
    settings = dict(root=str(tmp_path), image_size=16, fit=fit, background="black")
    memory = sources.load("folder", **settings)
    stream = sources.load("folder_stream", resize=16, train_crop="centre", **settings)
    np.testing.assert_array_equal(memory.train.images, np.asarray(stream.train.images))
    np.testing.assert_array_equal(memory.open_test().images, np.asarray(stream.open_test().images))
    crop, _, _ = stream.train.images.train_image(2, seed=0, place=0)
    np.testing.assert_array_equal(crop, memory.train.images[2])
