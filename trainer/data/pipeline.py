"""Batches as a pure function of (seed, step), from data in memory."""

import functools
from collections.abc import Iterator

import numpy as np

from trainer.data.splits import Split


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def batch_indices(step: int, *, seed: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of batch `step`: int64 [batch_size].

    The shuffled epochs follow one another without a gap, so that every example is seen once an
    epoch, none is dropped, and a batch may end one epoch and begin the next.
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(place, num_examples)
    parts = [_order(seed, int(epoch), num_examples)[within[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def train_batch(split: Split, step: int, *, seed: int, batch_size: int) -> dict[str, np.ndarray]:
    """Batch `step` of the shuffled, endless training stream.

    image uint8 [B, H, W, C], label int32 [B], mask float32 [B] (all ones).
    """
    index = batch_indices(step, seed=seed, num_examples=len(split.labels), batch_size=batch_size)
    return {"image": split.images[index], "label": split.labels[index], "mask": np.ones(batch_size, np.float32)}


def full_batch(split: Split, *, multiple: int) -> dict[str, np.ndarray]:
    """All of `split` as one batch, padded to a multiple of `multiple`; for optimisers that want the whole loss."""
    size = -(-len(split.labels) // multiple) * multiple
    return next(eval_batches(split, batch_size=size))


def eval_batches(split: Split, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example of `split` once, in order; the last batch is padded with zeros whose mask is 0."""
    for start in range(0, len(split.labels), batch_size):
        images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.pad(np.ones(len(labels), np.float32), (0, missing)),
        }
