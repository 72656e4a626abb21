"""Where the train images wait: on the devices, in host memory, or in their files.

A feed turns batches of places (`pipeline.places`) into what the train step is handed. The batches hold the same
examples in the same order wherever the images are.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from trainer.data import pipeline
from trainer.data.source import memory_bytes
from trainer.data.splits import Split

# Of a device's memory, or of the host's where the devices have none of their own: what "auto" fills with images.
SHARE = 0.25

PLACEMENTS = ("auto", "device", "host")


class Feed(NamedTuple):
    """Train batches. Built by `make_feed`.

    resident: {"image", "label"} of the whole split, host arrays that go to every device once, or {}. batches: from a
    step on, endless; host batches, of places alone where the images are resident. batch: step -> host batch with its
    images.
    """

    resident: dict[str, np.ndarray]
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    batch: Callable[[int], dict[str, np.ndarray]]


def make_feed(split: Split, *, places: Callable[[int], dict[str, np.ndarray]], placement: str) -> Feed:
    """The feed of `split`. places: step -> batch of places. placement: one of PLACEMENTS."""
    on_device = placement == "device" or (placement == "auto" and fits_device(split))

    def batch(step):
        return pipeline.gather(split, places(step))

    def batches(step, make=places if on_device else batch):
        while True:
            yield make(step)
            step += 1

    return Feed({"image": split.images, "label": split.labels} if on_device else {}, batches, batch)


def fits_device(split: Split) -> bool:
    """Whether the images of `split` fill at most `SHARE` of each device's memory."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # the CPU: its devices share the host's memory, and each holds a copy
        limit = (memory_bytes() or 0) / jax.device_count()
    return split.images.nbytes <= SHARE * limit
