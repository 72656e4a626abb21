"""Data larger than memory: the stream is the same however it is cut up, and nothing is decoded before its time."""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import pickle
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from PIL import Image

from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import batching, lazy, splits, stats
from linseed.trainer.data import grain_stream as stream_module
from linseed.trainer.data.decode import decode_random_crop, random_box
from linseed.trainer.data.grain_stream import Stream
from linseed.trainer.data.sources import folder_stream as folder_stream_module
from linseed.trainer.data.sources.folder import folder
from linseed.trainer.data.sources.folder_stream import folder_stream
from linseed.trainer.errors import ConfigError, DataError

PER_CLASS = 5
BATCH = 8


def photograph(seed, *, width, height):
    """Smooth colour and some noise, which a JPEG of a photograph also holds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders of JPEGs of about ImageNet's size."""
    root = tmp_path_factory.mktemp("photographs")
    for part, count in (("train", PER_CLASS), ("val", 2), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = [label, i, len(part)]
                photograph(seed, width=480 + 20 * i, height=375).save(root / part / name / f"{i}.jpg", quality=90)
    return root


@pytest.fixture(autouse=True)
def parsed_flags():
    """Grain reads absl's flags where it starts workers."""
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


@pytest.fixture
def copied(photographs, tmp_path):
    return shutil.copytree(photographs, tmp_path / "copy")


def read(root, **changes):
    settings = dict(
        image_size=32,
        resize=40,
        train_crop="random_resized_crop",
        test_fraction=0.2,
        split_seed=0,
        on_bad_image="error",
        workers=0,
    )
    return folder_stream(root=str(root), **settings | changes)


def some_batches(split, start, count, **settings):
    stream = Stream(split, **dict(seed=3, batch_size=BATCH, workers=0) | settings)
    with contextlib.closing(stream.batches(start)) as batches:
        return list(itertools.islice(batches, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
            assert one[key].dtype == two[key].dtype


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(lazy.LazyImages, "_decode", fail)


# The stream.


def test_the_stream_is_the_same_for_any_start_and_any_size_of_pieces(photographs, monkeypatch):
    train = read(photographs).train
    whole = some_batches(train, 0, 4)
    assert_same(some_batches(train, 2, 2), whole[2:])
    monkeypatch.setattr(stream_module, "PIECE", 3)
    assert_same(some_batches(train, 0, 4), whole)


def test_shards_put_together_are_the_global_batch(photographs):
    train = read(photographs).train
    shards = [some_batches(train, 1, 2, shard_index=i, shard_count=4) for i in range(4)]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, some_batches(train, 1, 2))


def test_the_stream_is_the_same_for_any_number_of_workers(photographs, monkeypatch):
    train = read(photographs).train
    expected = some_batches(train, 1, 3)
    assert_same(some_batches(train, 1, 3, workers=1), expected)
    assert_same(some_batches(train, 1, 3, workers=2), expected)


def test_examples_and_their_order_are_those_of_data_in_memory(photographs):
    train = read(photographs, train_crop="centre").train
    in_memory = splits.Split(train.images.read(slice(None)), train.labels)
    for step, found in enumerate(some_batches(train, 0, 4)):
        places = batching.places(step, seed=3, num_examples=2 * PER_CLASS, batch_size=BATCH)
        expected = batching.gather(in_memory, places)
        assert_same([{key: found[key] for key in expected}], [expected])
        np.testing.assert_array_equal(
            found["index"], batching.places(step, seed=3, num_examples=2 * PER_CLASS, batch_size=BATCH)["index"]
        )
        np.testing.assert_array_equal(found["epoch"], np.arange(step * BATCH, (step + 1) * BATCH) // (2 * PER_CLASS))
        assert found["index"].dtype == found["epoch"].dtype == np.int32


def test_a_worker_that_dies_gives_one_line(photographs):
    train = read(photographs).train
    stream = Stream(train._replace(images=_Deadly(train.images)), seed=0, batch_size=2, workers=1)
    with (
        pytest.raises(DataError, match="died.*workers=0") as caught,
        contextlib.closing(stream.batches(0)) as some,
    ):
        next(some)
    assert "\n" not in str(caught.value)


class _Deadly:
    """Images whose reader is killed, as by the system where memory is full."""

    def __init__(self, images):
        self.shape = images.shape

    def train_image(self, index, *, seed, place):
        os.kill(os.getpid(), signal.SIGKILL)


def test_without_workers_none_has_died(photographs, monkeypatch):
    def fail(self, index, *, seed, place):
        raise RuntimeError("of our own")

    monkeypatch.setattr(lazy.LazyImages, "train_image", fail)
    with pytest.raises(RuntimeError, match="of our own"):
        some_batches(read(photographs).train, 0, 1)


def test_a_batch_that_does_not_divide_over_the_hosts_is_refused(photographs):
    with pytest.raises(ConfigError, match="batch_size=8 does not divide over 3 hosts"):
        Stream(read(photographs).train, seed=0, batch_size=8, workers=0, shard_count=3)


# The random crop.


def test_a_crop_depends_on_its_place_and_the_seed_alone(photographs):
    images = read(photographs).train.images
    crop, _, _ = images.train_image(4, seed=1, place=9)
    np.testing.assert_array_equal(images.take(np.array([2, 4])).train_image(1, seed=1, place=9)[0], crop)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).train_image(4, seed=1, place=9)[0], crop)
    assert (images.train_image(4, seed=1, place=10)[0] != crop).any()
    assert (images.train_image(4, seed=2, place=9)[0] != crop).any()


def test_boxes_keep_to_the_image_and_to_the_areas_and_shapes_asked_for():
    boxes = np.array([random_box(500, 400, rng=np.random.default_rng(i)) for i in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 500 and bottom.max() <= 400
    width, height = right - left, bottom - top
    area, shape = width * height / (500 * 400), width / height
    assert 0.08 - 0.01 < area.min() < 0.1 and area.max() > 0.9
    assert 0.74 < shape.min() < 0.77 and 1.3 < shape.max() < 1.35
    assert abs(np.mean(np.log(shape[area < 0.5]))) < 0.02  # log-uniform, where all shapes fit
    assert abs(np.mean((left / np.maximum(500 - width, 1))[width < 400]) - 0.5) < 0.03


@pytest.mark.parametrize("width, height", [(1000, 3), (3, 1000), (1, 1)])
def test_an_image_that_no_crop_fits_into_gives_its_centre(width, height):
    for seed in range(20):
        left, top, right, bottom = random_box(width, height, rng=np.random.default_rng(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_crop_of_a_large_photograph_shows_the_place_that_was_drawn(tmp_path, orientation):
    # Red grows to the right and green to the bottom, so that colours tell places; JPEG decodes it at a quarter.
    across, down = np.meshgrid(np.linspace(0, 255, 1600), np.linspace(0, 255, 1200))
    upright = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.jpg", quality=95, exif=exif)
    for seed in range(5):
        left, top, right, bottom = random_box(1600, 1200, rng=np.random.default_rng(seed))
        found = decode_random_crop(tmp_path / "a.jpg", image_size=64, rng=np.random.default_rng(seed)).astype(float)
        expected = 255 * (left + right) / 2 / 1600, 255 * (top + bottom) / 2 / 1200
        np.testing.assert_allclose(found[..., :2].mean(axis=(0, 1)), expected, atol=3)


# Lazy images.


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_centre_crops_are_those_of_the_folder_source(photographs, part):
    lazily = read(photographs, resize=32)
    whole = folder(root=str(photographs), image_size=32, test_fraction=0.2, split_seed=0, on_bad_image="error")
    found, expected = (
        {"train": source.train, "val": source.val, "test": source.open_test()}[part] for source in (lazily, whole)
    )
    np.testing.assert_array_equal(found.images.read(slice(None)), expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.images[1:3], expected.images[1:3])
    np.testing.assert_array_equal(found.images[np.array([2, 0])], expected.images[[2, 0]])
    assert found.images.shape == expected.images.shape and found.images.dtype == expected.images.dtype


def test_the_centre_is_cut_out_of_the_resized_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    resized = np.asarray(Image.fromarray(pixels).resize((60, 40), Image.Resampling.BILINEAR))
    found = read(tmp_path, test_fraction=0.5).train.images[0]
    np.testing.assert_allclose(found.astype(int), resized[4:36, 14:46].astype(int), atol=1)


def test_nothing_is_decoded_before_it_is_asked_for(photographs, no_decoding):
    source = read(photographs)
    train, val = splits.carve_validation(source, fraction=0.2, seed=0)
    part = splits.part(train, examples=4, seed=0)
    assert part.images.shape == (4, 32, 32, 3) and len(val.labels) == 4
    stats.fingerprint(train, val)
    source.open_test()
    with pytest.raises(AssertionError, match="decoded"):
        part.images[:1]


def test_evaluation_gives_every_image_once(photographs):
    val = read(photographs).val
    batches = list(batching.eval_batches(val, batch_size=3))
    good = [batch["mask"] > 0 for batch in batches]
    images = np.concatenate([batch["image"][mask] for batch, mask in zip(batches, good, strict=True)])
    np.testing.assert_array_equal(images, val.images[:])


def test_the_fingerprint_tells_files_sizes_labels_and_settings_apart(copied):
    def fingerprint(**changes):
        return stats.fingerprint(read(copied, **changes).train)

    before = fingerprint()
    assert fingerprint() == before == fingerprint(workers=2)
    assert fingerprint(on_bad_image="skip") == before  # the cure of an error, and no other data
    settings = [("resize", 48), ("image_size", 40), ("train_crop", "centre"), ("fit", "pad"), ("bits", 12)]
    assert len({before, *(fingerprint(**{key: value}) for key, value in settings)}) == 6
    path = copied / "train" / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    longer = fingerprint()
    path.rename(path.with_name("00.jpg"))
    assert len({before, longer, fingerprint()}) == 3


def test_runs_from_before_fit_and_background_keep_their_fingerprint():
    decoding = lazy.Decoding(32, 40, train_crop="centre", on_bad_image="error")
    records = SimpleNamespace(identity=lambda places: [b"a"])
    settings = {"image_size": 32, "resize": 40, "train_crop": "centre"}
    expected = hashlib.sha256(repr(settings).encode() + b"a").hexdigest()
    assert lazy.LazyImages(records, np.arange(1), decoding=decoding, workers=0).identity() == expected


@pytest.mark.parametrize("name", sorted(stats.NORMALIZERS))
def test_statistics_are_those_of_a_sample_read_in_parts(photographs, name, tmp_path, monkeypatch):
    train = read(photographs).train
    whole = splits.Split(train.images[:], train.labels)
    monkeypatch.setattr(stats, "_IMAGES_PER_READ", 3)
    found, expected = (
        stats.statistics(split, name, mean=(), std=(), cache=tmp_path / f"{i}.json")
        for i, split in enumerate((train, whole))
    )
    for key in ("mean", "std"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-12)
    read_here = []
    monkeypatch.setattr(stats, "SAMPLE", 4)
    monkeypatch.setattr(lazy.LazyImages, "_decode", lambda *a: (read_here.append(a) or np.zeros((32, 32, 3)), ""))
    stats.channel_moments(train.images)
    assert len(read_here) == 4


# Bad images.


@pytest.fixture
def spoilt(copied):
    for part, name in (("train", "1.jpg"), ("train", "2.jpg"), ("val", "0.jpg")):
        (copied / part / "cat" / name).write_text("not an image")
    return copied


def test_a_bad_image_is_an_error_that_names_it_and_the_cure(spoilt):
    for call in (
        lambda: some_batches(read(spoilt).train, 0, 2),
        lambda: list(batching.eval_batches(read(spoilt).val, batch_size=4)),
    ):
        with pytest.raises(DataError, match=r"cat/\d.jpg .* cannot be read; .*on_bad_image=skip") as caught:
            call()
        assert str(caught.value).isprintable()


def test_the_next_good_image_stands_for_a_bad_one_in_training(spoilt, caplog):
    source = read(spoilt, on_bad_image="skip", train_crop="centre")
    with caplog.at_level(logging.WARNING):
        batches = some_batches(source.train, 0, 5)
    for step, batch in enumerate(batches):
        asked = batching.places(step, seed=3, num_examples=2 * PER_CLASS, batch_size=BATCH)["index"]
        expected = np.where((asked == 1) | (asked == 2), 3, asked)
        np.testing.assert_array_equal(batch["index"], expected)
        np.testing.assert_array_equal(batch["label"], source.train.labels[expected])
        np.testing.assert_array_equal(batch["image"], source.train.images[expected])
    named = [record.message for record in caplog.records]
    assert sorted(line.split(": ")[1].split()[0] for line in named) == ["train/cat/1.jpg", "train/cat/2.jpg"]


def test_bad_images_do_not_count_in_evaluation(spoilt):
    batch = next(batching.eval_batches(read(spoilt, on_bad_image="skip").val, batch_size=6))
    assert batch["mask"].tolist() == [0, 1, 1, 1, 0, 0] and not batch["image"][0].any()


MACHINES_FAULTS = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ESTALE, "Stale"), MemoryError()]


@pytest.mark.parametrize("fault", MACHINES_FAULTS, ids=repr)
def test_a_fault_of_the_machine_leaves_no_image_out(photographs, monkeypatch, fault):
    source = read(photographs, on_bad_image="skip", train_crop="centre")

    def fail(*args, **kwargs):
        raise ValueError("while decoding") from fault

    monkeypatch.setattr(lazy, "decode_square", fail)
    for call in (lambda: some_batches(source.train, 0, 1), lambda: source.val.images[:1]):
        with pytest.raises(DataError, match=r"jpg cannot be read now .*run the same command again") as caught:
            call()
        assert str(caught.value).isprintable()


def test_bad_images_without_end_are_an_error(spoilt, monkeypatch):
    monkeypatch.setattr(lazy, "MOST_BAD_IN_A_ROW", 2)
    with pytest.raises(DataError, match="2 images in a row cannot be read"):
        read(spoilt, on_bad_image="skip").train.images.train_image(1, seed=0, place=0)


def test_a_link_that_leads_out_is_bad(copied, tmp_path):
    photograph(0, width=40, height=40).save(tmp_path / "secret.jpg")
    path = copied / "val" / "cat" / "0.jpg"
    path.unlink()
    path.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match="leaves the data folder"):
        read(copied).val.images[:1]


def test_a_square_smaller_than_the_image_is_refused(photographs):
    with pytest.raises(ConfigError, match="resize is 16, less than image_size=32"):
        read(photographs, resize=16)


@pytest.mark.parametrize("source", ["folder_stream", "tfds_stream"])
@pytest.mark.parametrize(
    "key, value, words",
    [
        ("image_size", 0, "a whole number in"),
        ("train_crop", "center", "did you mean 'centre'"),
        ("on_bad_image", "skp", "did you mean 'skip'"),
        ("fit", "pat", "did you mean 'pad'"),
    ],
)
def test_settings_that_cannot_be_are_refused(source, key, value, words):
    root = {"root": "photos"} if source == "folder_stream" else {}
    with pytest.raises(ConfigError, match=f"config.data.source.{key}={value!r} should be .*{words}"):
        resolve({"data": {"source": {"name": source, key: value, **root}}})


def test_records_can_be_pickled_small(photographs):
    records = read(photographs).train.images.records
    assert isinstance(records, folder_stream_module.FileRecords)
    assert len(pickle.dumps(records)) < 2000
