"""Images that are there more than once: in train and validation, or with two labels."""

import hashlib

import numpy as np

from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split


def share_in_train(train: Split, val: Split) -> float:
    """The share of the validation images that are also in train, pixel for pixel; 0 for lazy images."""
    if _is_lazy(train, val) or not len(val.labels):
        return 0.0
    known = set(_digests(train.images))
    return sum(digest in known for digest in _digests(val.images)) / len(val.labels)


def share_with_two_labels(split: Split) -> float:
    """The share of the images that equal another one, pixel for pixel, of another class; 0 for lazy images."""
    if _is_lazy(split):
        return 0.0
    digests, labels = _digests(split.images), {}
    for digest, label in zip(digests, split.labels, strict=True):
        labels.setdefault(digest, set()).add(int(label))
    return sum(len(labels[digest]) > 1 for digest in digests) / len(digests)


def _is_lazy(*splits):
    """Comparing lazy images would decode all of them."""
    return any(isinstance(split.images, LazyImages) for split in splits)


def _digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images]
