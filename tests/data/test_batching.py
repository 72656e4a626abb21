"""Batches as a pure function of (seed, step)."""

import numpy as np
import pytest

from linseed.trainer.data.batching import all_places, eval_batches, gather, places
from linseed.trainer.data.splits import Split


def batch_indices(step, **kwargs):
    return places(step, **kwargs)["index"]


def numbered(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return Split(images, np.arange(count, dtype=np.int32))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(20, 5), (20, 6), (7, 16), (1, 3)])
def test_every_epoch_sees_every_example_once_and_drops_none(num_examples, batch_size):
    epochs = 6
    steps = -(-num_examples * epochs // batch_size)
    stream = np.concatenate(
        [batch_indices(s, seed=3, num_examples=num_examples, batch_size=batch_size) for s in range(steps)]
    )
    for epoch in range(epochs):
        part = stream[epoch * num_examples : (epoch + 1) * num_examples]
        np.testing.assert_array_equal(np.sort(part), np.arange(num_examples))


def test_a_batch_depends_on_seed_and_step_alone():
    first = [batch_indices(s, seed=1, num_examples=50, batch_size=8) for s in range(30)]
    again = [batch_indices(s, seed=1, num_examples=50, batch_size=8) for s in reversed(range(30))]
    np.testing.assert_array_equal(first, again[::-1])
    other = [batch_indices(s, seed=2, num_examples=50, batch_size=8) for s in range(30)]
    assert (np.array(first) != np.array(other)).any()


def test_epochs_are_shuffled_anew():
    orders = [batch_indices(epoch, seed=0, num_examples=64, batch_size=64) for epoch in range(3)]
    assert not any((orders[i] == orders[j]).all() for i, j in ((0, 1), (1, 2), (0, 2)))


def test_a_batch_names_the_epoch_of_each_example():
    stream = [places(step, seed=0, num_examples=20, batch_size=8)["epoch"] for step in range(5)]
    np.testing.assert_array_equal(np.concatenate(stream), np.repeat([0, 1], 20))


def test_a_batch_of_all_examples_counts_each_once():
    batch = all_places(3, num_examples=10, multiple=4)
    assert {len(values) for values in batch.values()} == {12} and set(batch["epoch"]) == {3}
    np.testing.assert_array_equal(batch["index"][batch["mask"] > 0], np.arange(10))


def test_images_stay_with_their_labels():
    batch = gather(numbered(30), places(5, seed=0, num_examples=30, batch_size=8))
    np.testing.assert_array_equal(batch["index"], batch["label"])
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert batch["mask"].dtype == np.float32 and batch["mask"].all()


def test_a_batch_says_which_example_it_has_in_which_epoch():
    split, seen = numbered(30), []
    for step in range(8):
        batch = gather(split, places(step, seed=0, num_examples=30, batch_size=8))
        np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
        assert batch["index"].dtype == batch["epoch"].dtype == np.int32
        seen += zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True)
    assert sorted(seen[:60]) == [(epoch, index) for epoch in range(2) for index in range(30)]
    assert {epoch for epoch, _ in seen[60:]} == {2}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_evaluation_gives_every_example_once_in_equal_batches(count):
    batches = list(eval_batches(numbered(count), batch_size=8))
    assert {batch["image"].shape[0] for batch in batches} == {8}
    labels = np.concatenate([batch["label"][batch["mask"] > 0] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(count))
    padding = np.concatenate([batch["image"][batch["mask"] == 0] for batch in batches])
    assert len(padding) == -count % 8 and not padding.any()
