"""A TFDS data set that stays in its files gives what the one in memory gives, batch for batch."""

import contextlib
import itertools
import pickle

import numpy as np
import pytest
from absl import flags
from support.cifar_archive import offer_cifar, random_cifar

from linseed.trainer.data import batching, splits, stats
from linseed.trainer.data.grain_stream import Stream
from linseed.trainer.data.sources import tfds_stream as tfds_stream_module
from linseed.trainer.data.sources.tfds import tfds
from linseed.trainer.data.sources.tfds_stream import tfds_stream
from linseed.trainer.errors import DataError

pytest.importorskip("tensorflow_datasets")

TRAIN, BATCH = (
    40,
    12,
)  # a batch does not divide the split, so that one holds the end of an epoch and the next one's start


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    offer_cifar(tmp_path, monkeypatch, name="cifar10", **random_cifar(num_train=TRAIN, num_test=10))
    return tmp_path


@pytest.fixture
def parsed_flags():
    """Grain reads absl's flags where it starts workers."""
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


def streamed(data_dir, *, train_split="train", test_split="test", train_crop="centre"):
    return tfds_stream(
        dataset="cifar10",
        data_dir=str(data_dir),
        train_split=train_split,
        test_split=test_split,
        image_size=32,
        resize=32,
        train_crop=train_crop,
        on_bad_image="error",
        workers=0,
    )


def in_memory(data_dir, *, train_split="train", test_split="test"):
    return tfds(dataset="cifar10", data_dir=str(data_dir), train_split=train_split, test_split=test_split)


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.images[:], expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.labels.dtype == expected.labels.dtype and found.images.shape == expected.images.shape


def some_batches(split, start, count, *, workers=0):
    stream = Stream(split, seed=3, batch_size=BATCH, workers=workers)
    with contextlib.closing(stream.batches(start)) as batches:
        return list(itertools.islice(batches, count))


def assert_same(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def test_images_labels_and_names_are_those_of_the_source_in_memory(data_dir):
    found, expected = streamed(data_dir), in_memory(data_dir)
    assert_equal(found.train, expected.train)
    assert_equal(found.open_test(), expected.open_test())
    assert found.class_names == expected.class_names and found.val is None


def test_parts_of_splits_have_their_own_images_and_labels(data_dir):
    parts = dict(train_split="train[:75%]", test_split="train[75%:]")
    found, expected = streamed(data_dir, **parts), in_memory(data_dir, **parts)
    assert_equal(found.train, expected.train)
    assert_equal(found.open_test(), expected.open_test())
    assert_equal(streamed(data_dir).train, in_memory(data_dir).train)  # whose labels are not taken from the part's


def test_batches_are_those_of_data_in_memory_from_any_step_of_an_epoch(data_dir):
    train, whole = streamed(data_dir).train, in_memory(data_dir).train
    places = [batching.places(step, seed=3, num_examples=TRAIN, batch_size=BATCH) for step in range(5)]
    expected = [batching.gather(whole, place) for place in places]
    for start in (0, 2, 3):  # step 3 holds the end of the first epoch
        assert_same(some_batches(train, start, 5 - start), expected[start:])


def test_the_stream_is_the_same_for_any_number_of_workers(data_dir, parsed_flags):
    train = streamed(data_dir, train_crop="random_resized_crop").train
    train.images[:1]  # files are open, which no other process can have
    expected = some_batches(train, 2, 3)
    for workers in (1, 2):
        assert_same(some_batches(train, 2, 3, workers=workers), expected)


def test_validation_carved_from_it_is_decoded_to_the_right_images(data_dir):
    found, expected = (
        splits.carve_validation(source, fraction=0.25, seed=0) for source in (streamed(data_dir), in_memory(data_dir))
    )
    for one, two in zip(found, expected, strict=True):
        assert_equal(one, two)
        batches = list(batching.eval_batches(one, batch_size=7))
        assert_same(batches, list(batching.eval_batches(two, batch_size=7)))


def test_labels_are_read_from_the_records_once(data_dir, monkeypatch):
    first = streamed(data_dir).train.labels
    monkeypatch.setattr(tfds_stream_module, "open_encoded", None)
    np.testing.assert_array_equal(streamed(data_dir).train.labels, first)


@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_kept_labels_that_are_damaged_are_read_again(data_dir, content):
    first = streamed(data_dir).train.labels
    (kept,) = data_dir.glob("cifar10/*/.linseed-labels-*.npy")
    if content is None:
        np.save(kept, first[:-1])
    else:
        kept.write_bytes(content)
    np.testing.assert_array_equal(streamed(data_dir).train.labels, first)
    np.testing.assert_array_equal(np.load(kept), first)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(data_dir, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    expected = in_memory(data_dir).train.labels
    monkeypatch.setattr(tfds_stream_module.os, "replace", refuse)
    np.testing.assert_array_equal(streamed(data_dir).train.labels, expected)
    assert "cannot be stored" in caplog.text


def test_the_fingerprint_is_that_of_the_files_and_of_what_is_taken_from_them(data_dir):
    whole, part = streamed(data_dir).train, streamed(data_dir, train_split="train[:75%]").train
    assert stats.fingerprint(whole) == stats.fingerprint(streamed(data_dir).train) != stats.fingerprint(part)


def test_records_are_pickled_without_their_open_files(data_dir):
    images = streamed(data_dir).train.images
    images[:1]
    pickled = pickle.dumps(images.records)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(
        np.frombuffer(pickle.loads(pickled).open(5).read(), np.uint8),
        np.frombuffer(images.records.open(5).read(), np.uint8),
    )


def test_damaged_files_are_one_line(data_dir):
    streamed(data_dir)
    for kept in data_dir.glob("cifar10/*/.linseed-labels-*"):
        kept.unlink()
    for file in data_dir.glob("cifar10/*/*train*"):
        file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(DataError, match="to prepare it again") as caught:
        streamed(data_dir)
    assert str(caught.value).isprintable()
