"""Whole-batch cost of each augmentation op: images/s, and time over that of a copy."""

import statistics

import jax
import jax.numpy as jnp

from scripts.benchmarks.turns import in_turns
from trainer.data.augment import make_augment
from trainer.data.augment.place import Place
from trainer.gallery.strips import SPECS


def measure(*, batch: int, size: int, rounds: int) -> dict:
    """batch: images; size: their height and width in pixels; rounds: see `in_turns`."""
    keys = jax.random.split(jax.random.key(0), batch)
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    chains = {"crop_and_flip": "pad_crop(4)|flip_lr(0.5)", "three_warps": "rotate(15)|shear(0.1)|translate(0.1)"}
    places = Place(keys, jnp.zeros(batch, jnp.int32))
    compiled = {name: jax.jit(make_augment(spec)) for name, spec in {**SPECS, **chains}.items()}
    baseline = jax.jit(lambda keys, images: images + 0.0)
    calls = {"": lambda: baseline(keys, images)} | {
        name: _call(f, keys, images, places) for name, f in compiled.items()
    }
    seconds = {name: statistics.median(times.wall) for name, times in in_turns(calls, rounds=rounds).items()}
    copy = seconds.pop("")
    return {
        "batch": batch,
        "size": size,
        "images_per_second": {name: round(batch / value) for name, value in seconds.items()},
        "times_a_copy": {name: round(value / copy, 1) for name, value in seconds.items()},
        "ratio": round(copy / seconds["crop_and_flip"], 4),
        "ratio_is": "time of a copy of the batch over time of crop_and_flip",
    }


def _call(function, *arguments):
    return lambda: function(*arguments)
