"""Benchmarks: one JSON line with figures, a ratio, the machine and the versions.

    python -m scripts.bench augment --out=docs/benchmarks

Each ratio is between two things measured in turns in the same process, so that a noisy machine slows both.
"""

import json
import os
import platform
import statistics
import time
from pathlib import Path

from absl import flags

from scripts import command

BATCH = flags.DEFINE_integer("batch", 256, "Images a batch.")
SIZE = flags.DEFINE_integer("size", 32, "Height and width of the images, in pixels.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each thing is measured, in turns; medians are reported.")
OUT = flags.DEFINE_string("out", None, "Folder that also gets the result, as NAME.json.")


def augment():
    """Whole-batch cost of each augmentation op: images/s, and time over that of the identity (clip alone)."""
    import jax

    from trainer.data.augment import make_augment
    from trainer.gallery.strips import SPECS

    keys = jax.random.split(jax.random.key(0), BATCH.value)
    images = jax.random.uniform(jax.random.key(1), (BATCH.value, SIZE.value, SIZE.value, 3))
    chains = {"crop_and_flip": "pad_crop(4)|flip_lr(0.5)", "three_warps": "rotate(15)|shear(0.1)|translate(0.1)"}
    compiled = {name: jax.jit(make_augment(spec)) for name, spec in {**SPECS, **chains}.items()}
    baseline = jax.jit(lambda keys, images: images + 0.0)
    seconds = _in_turns({"": lambda: baseline(keys, images)} | {n: _call(f, keys, images) for n, f in compiled.items()})
    copy = seconds.pop("")
    return {
        "batch": BATCH.value,
        "size": SIZE.value,
        "images_per_second": {name: round(BATCH.value / value) for name, value in seconds.items()},
        "times_a_copy": {name: round(value / copy, 1) for name, value in seconds.items()},
        "ratio": round(copy / seconds["crop_and_flip"], 4),
        "ratio_is": "time of a copy of the batch over time of crop_and_flip",
    }


BENCHMARKS = {"augment": augment}


def _call(function, *arguments):
    return lambda: function(*arguments)


def _in_turns(calls):
    """Median seconds of each call, one round after the other; the first round compiles and is not counted."""
    import jax

    found = {name: [] for name in calls}
    for round_ in range(ROUNDS.value + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if round_:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def main(console, name):
    import jax

    from trainer.errors import LinseedError, unknown_name
    from trainer.result import versions

    if name not in BENCHMARKS:
        raise LinseedError(unknown_name("benchmark", name, BENCHMARKS))
    result = {
        "benchmark": name,
        **BENCHMARKS[name](),
        "rounds": ROUNDS.value,
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
    line = json.dumps(result)
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        (Path(OUT.value) / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    command.run(main, argument="NAME")
