"""Where the train images are stored: on the devices, in host memory, or in their files.

A feed turns batches of indices (`batching.places`) into the input of the train step. The batches hold the same examples
in the same order wherever the images are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from linseed.trainer.data import batching
from linseed.trainer.data.grain_stream import Stream
from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError
from linseed.trainer.runtime import processes
from linseed.trainer.runtime.machine import memory_bytes

# The share of a device's memory that "auto" fills with images; of the host's, if devices have none of their own.
SHARE = 0.25

PLACEMENTS = ("auto", "device", "host")


class Feed(NamedTuple):
    """Train batches. Built by `make_feed`.

    resident: {"image", "label"} of the whole split, host arrays to put on every device once, or {}. batches: start step
    -> endless host batches, to be closed; without images and labels if these are resident. batch: step -> host batch
    with its images. Both give this host's rows only.
    """

    resident: dict[str, np.ndarray]
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    batch: Callable[[int], dict[str, np.ndarray]]


def make_feed(
    split: Split,
    *,
    val: Split,
    placement: str,
    seed: int,
    batch_size: int,
    multiple: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Feed:
    """The feed of `split`. placement: one of PLACEMENTS; lazy images stay in their files.

    val: the split to evaluate, on the devices if `split` is. seed, batch_size: as for `batching.places`; batch_size 0
    puts all of the split in one batch, padded to a `multiple`. shard_index, shard_count: the host whose rows of each
    batch (`batching.share`) the feed reads, and the number of hosts. Raises ConfigError if lazy images should be on the
    devices or in one batch.
    """
    if isinstance(split.images, LazyImages):
        hosts = {"shard_index": shard_index, "shard_count": shard_count}
        return _streamed(split, placement=placement, seed=seed, batch_size=batch_size, **hosts)
    num_examples = len(split.labels)
    if batch_size:
        draw = {"seed": seed, "num_examples": num_examples, "batch_size": batch_size}
        places = functools.partial(batching.places, **draw)
    else:
        places = functools.partial(batching.all_places, num_examples=num_examples, multiple=multiple)

    def mine(step):
        batch = places(step)
        rows = batching.share(len(batch["index"]), shard_index=shard_index, shard_count=shard_count)
        return {key: values[rows] for key, values in batch.items()}

    def batch(step):
        return batching.gather(split, mine(step))

    # The writer decides for all: another machine may have more memory and would run another program.
    on_device = placement == "device" or (
        placement == "auto" and processes.from_writer(lambda: bool(fits_device(split, val)))
    )
    resident = {"image": split.images, "label": split.labels} if on_device else {}
    return Feed(resident, functools.partial(_endless, mine if on_device else batch), batch)


def _endless(batch, step):
    while True:
        yield batch(step)
        step += 1


def _streamed(split, *, placement, seed, batch_size, **hosts):
    if placement == "device" or not batch_size:
        wrong = "config.data.batch_size=0" if not batch_size else "config.data.placement='device'"
        raise ConfigError(f"{wrong} needs the images in memory; choose a source that does not stream them")
    stream = functools.partial(Stream, split, seed=seed, batch_size=batch_size, **hosts)

    def batch(step):
        with contextlib.closing(stream(workers=0).batches(step)) as batches:
            return next(batches)

    return Feed({}, stream(workers=split.images.workers).batches, batch)


def fits_device(train: Split, val: Split) -> bool:
    """Whether all of train and a device's part of val fill at most `SHARE` of each device's memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # the CPU: its devices share the host's memory, and each holds a copy
        limit = (memory_bytes() or 0) / jax.local_device_count()
    return train.images.nbytes + val.images.nbytes / jax.device_count() <= SHARE * limit
