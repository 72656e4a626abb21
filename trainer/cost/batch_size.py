"""Finds the largest batch that fits on the devices by compiling the train step, without running it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from linseed.trainer.cost.measure import step_bytes
from linseed.trainer.errors import ConfigError
from linseed.trainer.experiment import Experiment
from linseed.trainer.train import AHEAD

COMPILES = 8  # at most so many sizes are tried
PART = 50  # precision of the search: one part in so many


class Room(NamedTuple):
    """The largest batch that fits: examples per device and in all, and bytes per device.

    bytes: of its step and of everything else that the loop holds. If the smallest batch does not fit: 0, 0 and its
    bytes. limit: bytes of a device. compiled: sizes tried. all_of_train: the batch is the train split; larger ones were
    not tried.
    """

    per_device: int
    batch: int
    bytes: int
    limit: int
    compiled: int
    all_of_train: bool


def find_room(experiment: Experiment, config: ml_collections.ConfigDict, *, limit: int) -> Room | None:
    """The largest batch for devices of `limit` bytes each; None if the backend does not analyse its memory.

    config: of `experiment`. The batch divides evenly over devices and their `accumulation_parts`.
    """
    parallel, one_batch = experiment.parallel, experiment.feed.batch(0)
    state, unit = parallel.replicate(experiment.state), parallel.num_devices * config.accumulation_parts
    always, an_example = _beside(experiment, config, one_batch=one_batch)

    def bytes_at(units):
        def resized(array):
            return np.broadcast_to(array[:1], (units * unit, *array.shape[1:]))

        try:
            batch = parallel.shard(jax.tree.map(resized, one_batch))
            found = step_bytes(experiment.train_step.lower(state, batch).compile())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return limit + 1
        except ConfigError:  # too few examples for the network to learn from
            return limit + 1
        return None if found is None else found.peak + always + units * config.accumulation_parts * an_example

    most = max(1, len(experiment.train.labels) // unit)
    known = largest_fitting(bytes_at, start=max(1, experiment.batch_size // unit), most=most, limit=limit)
    if known is None:
        return None
    fits = max((units for units, size in known.items() if size <= limit), default=0)
    return Room(
        per_device=fits * config.accumulation_parts,
        batch=fits * unit,
        bytes=known[fits or min(known)],
        limit=limit,
        compiled=len(known),
        all_of_train=fits == most,
    )


def _beside(experiment, config, *, one_batch):
    """Bytes that the loop holds on each device besides a step: a constant, and per example of a batch there.

    Constant: train and validation if they stay on the devices, and the copy of the state for checkpoints. Per example:
    the batches of calls in flight, except the one of the current step.
    """
    resident, val = experiment.feed.resident, experiment.val
    always = sum(leaf.nbytes for leaf in [*jax.tree.leaves(experiment.state), *resident.values()])
    if resident:
        size = config.eval.batch_size
        padded = -(-len(val.labels) // size) * size
        always += padded // experiment.parallel.num_devices * (val.images[0].nbytes + 4 + 4)  # label and mask
    example = sum(array[0].nbytes for key, array in one_batch.items() if key not in resident)
    return always, ((AHEAD + 1) * config.steps_per_call - 1) * example


def largest_fitting(
    bytes_at: Callable[[int], int | None], *, start: int, most: int, limit: int
) -> dict[int, int] | None:
    """{n: bytes_at(n)} for all n in 1..most that were tried, down to the largest with bytes_at(n) <= limit.

    bytes_at is nearly linear and expensive. It tries `start`, then its half or double; then a line through the two
    points nearest to the limit gives the next n. None if bytes_at(start) is.
    """
    known, fits, fails = {}, 0, most + 1
    guess = min(start, most)
    while fails - fits > max(1, fits // PART) and len(known) < COMPILES:
        size = bytes_at(guess)
        if size is None:
            return None
        known[guess] = size
        fits, fails = (guess, fails) if size <= limit else (fits, guess)
        if len(known) == 1:
            guess = 2 * guess if fits else guess // 2
        else:
            low, high = sorted(sorted(known, key=lambda n: abs(known[n] - limit))[:2])
            slope = (known[high] - known[low]) / (high - low)
            guess = int(low + (limit - known[low]) / slope) if slope > 0 else (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
    return known
