"""Batches as a pure function of (seed, step): the indices of their examples, and the examples, from memory.

A train batch holds image uint8 [B, H, W, C], label int32 [B], mask float32 [B] (0 on padding), index int32 [B] into the
train split, and epoch int32 [B], the current epoch of each example. A batch of places has no image and label, for
callers that hold the images.
"""

import functools
from collections.abc import Iterator

import numpy as np

from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples).astype(np.int32)


def places(step: int, *, seed: int, num_examples: int, batch_size: int) -> dict[str, np.ndarray]:
    """Batch `step` of the shuffled, endless training stream: index, epoch, and a mask of ones, without images.

    The shuffled epochs follow one another without a gap. Every example is seen once an epoch, none is dropped, and a
    batch may end one epoch and begin the next.
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(place, num_examples)
    parts = [_order(seed, int(epoch), num_examples)[within[epochs == epoch]] for epoch in np.unique(epochs)]
    return {
        "index": np.concatenate(parts),
        "epoch": epochs.astype(np.int32),
        "mask": np.ones(batch_size, np.float32),
    }


def all_places(step: int, *, num_examples: int, multiple: int) -> dict[str, np.ndarray]:
    """Batch `step` of full-batch training: all examples in order, padded with the first to a multiple of `multiple`."""
    size = -(-num_examples // multiple) * multiple
    missing = size - num_examples
    return {
        "index": np.pad(np.arange(num_examples, dtype=np.int32), (0, missing)),
        "epoch": np.full(size, step, np.int32),
        "mask": np.pad(np.ones(num_examples, np.float32), (0, missing)),
    }


def gather(split: Split, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`batch`, as `places` gives it, with images and labels from `split`."""
    return {**batch, "image": split.images[batch["index"]], "label": split.labels[batch["index"]]}


def share(batch_size: int, *, shard_index: int, shard_count: int) -> slice:
    """The rows of a batch for host `shard_index` of `shard_count` hosts, which must divide `batch_size`."""
    size = batch_size // shard_count
    return slice(shard_index * size, (shard_index + 1) * size)


def eval_batches(
    split: Split, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every example of `split` once, in order; the last batch is padded with zeros whose mask is 0.

    Skipped bad images also have mask 0. It reads and yields one host's `share` of each batch.
    """
    mine = share(batch_size, shard_index=shard_index, shard_count=shard_count)
    for start in range(0, len(split.labels), batch_size):
        part = slice(start + mine.start, start + mine.stop)
        labels = split.labels[part]
        if isinstance(split.images, LazyImages):
            images, good = split.images.read_good(part)
        else:
            images, good = split.images[part], np.ones(len(labels), bool)
        missing = mine.stop - mine.start - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.pad(good.astype(np.float32), (0, missing)),
        }
