"""Cost of each augmentation op on a whole batch: images/s, and its time over a copy's."""

import itertools
import math
import statistics
import time

import jax
import jax.numpy as jnp

from linseed.scripts.bench.turns import in_turns
from linseed.scripts.gallery.strips import SPECS
from linseed.trainer.data.augment import make_augment
from linseed.trainer.data.augment.place import Place

TURN_SECONDS = 0.05  # minimum of a turn: a single call is too short for the clock


def measure(*, batch: int, size: int, rounds: int) -> dict:
    """batch: images; size: their height and width in pixels; rounds: see `in_turns`.

    A turn repeats the call for at least `TURN_SECONDS`.
    """
    keys = jax.random.split(jax.random.key(0), batch)
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    chains = {"crop_and_flip": "pad_crop(4)|flip_lr(0.5)", "three_warps": "rotate(15)|shear(0.1)|translate(0.1)"}
    places = Place(keys, jnp.zeros(batch, jnp.int32))
    compiled = {name: jax.jit(make_augment(spec)) for name, spec in {**SPECS, **chains}.items()}
    baseline = jax.jit(lambda keys, images: images + 0.0)
    arguments = {"": (baseline, keys, images)} | {name: (f, keys, images, places) for name, f in compiled.items()}
    calls = {name: _call(*of) for name, of in arguments.items()}
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times = in_turns({name: _repeated(calls[name], count) for name, count in repeats.items()}, rounds=rounds)
    seconds = {name: statistics.median(times[name].wall) / count for name, count in repeats.items()}
    copy = seconds.pop("")
    return {
        "batch": batch,
        "size": size,
        "rounds": rounds,
        "images_per_second": {name: round(batch / value) for name, value in seconds.items()},
        "times_a_copy": {name: round(value / copy, 1) for name, value in seconds.items()},
        "ratio": round(copy / seconds["crop_and_flip"], 4),
        "ratio_is": "time of a copy of the batch over time of crop_and_flip",
    }


def _call(function, *arguments):
    return lambda: function(*arguments)


def _repeats(call):
    """How many calls take `TURN_SECONDS`, by the fastest of three calls; one call before them compiles."""
    ends = [(jax.block_until_ready(call()), time.perf_counter())[1] for _ in range(4)]
    return math.ceil(TURN_SECONDS / min(end - begin for begin, end in itertools.pairwise(ends)))


def _repeated(call, count):
    def calls():
        for _ in range(count):
            found = jax.block_until_ready(call())
        return found

    return calls
