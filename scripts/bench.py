"""Benchmarks: one JSON line with figures, a ratio, the machine and the versions.

    python -m scripts.bench augment --out=docs/benchmarks
    python -m scripts.bench conv --out=docs/benchmarks
    python -m scripts.bench trials --out=docs/benchmarks
    python -m scripts.bench diagnosis --out=docs/benchmarks
    python -m scripts.bench startup --out=docs/benchmarks
    python -m scripts.bench input --out=docs/benchmarks

What is compared is measured in turns, so that a noisy machine slows both. `trials` takes half an hour on two cores,
most of it for speednet; --models=linear,mlp,cnn takes seven minutes.
"""

import json
import os
import platform
from pathlib import Path

from absl import flags

from scripts import command

BATCH = flags.DEFINE_integer("batch", 256, "augment, conv: images a batch.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 32, "augment: height and width of the images, in pixels.", lower_bound=1)
MODELS = flags.DEFINE_list("models", ["linear", "mlp", "cnn", "speednet"], "trials: the models to try.")
TRIALS = flags.DEFINE_integer("trials", 12, "trials: the most trials.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 200, "trials: the steps of a run; a tenth of them for speednet.", lower_bound=1)
ROOT = flags.DEFINE_string("root", "", "trials: CIFAR-10 as class folders for speednet; without, synthetic images.")
FAULTS = flags.DEFINE_list("faults", None, "diagnosis: the faults to plant, by name; all of them.")
SEEDS = flags.DEFINE_integer("seeds", 10, "diagnosis: the seeds of clean runs.", lower_bound=0)
EPOCHS = flags.DEFINE_float("epochs", 0.0, "diagnosis: of a plain run; 0: what sound runs take.", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 256, "input: JPEG files to make.", lower_bound=64)
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each is measured, in turns; medians are given.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Folder that also gets the result, as NAME.json.")


def _augment():
    from scripts.benchmarks import augment

    return augment.measure(batch=BATCH.value, size=SIZE.value, rounds=ROUNDS.value)


def _trials():
    from scripts.benchmarks import trials

    kwargs = {"models": MODELS.value, "trials": TRIALS.value, "steps": STEPS.value, "root": ROOT.value}
    return trials.measure(**kwargs, rounds=ROUNDS.value)


def _conv():
    from scripts.benchmarks import conv

    return conv.measure(batch=BATCH.value, rounds=ROUNDS.value)


def _diagnosis():
    from scripts.benchmarks import diagnosis

    faults = list(diagnosis.FAULTS) if FAULTS.value is None else FAULTS.value
    return diagnosis.measure(faults=faults, seeds=SEEDS.value, epochs=EPOCHS.value)


def _startup():
    from scripts.benchmarks import startup

    return startup.measure(rounds=ROUNDS.value)


def _input():
    from scripts.benchmarks import input as input_

    return input_.measure(images=IMAGES.value, rounds=ROUNDS.value)


BENCHMARKS = {
    "augment": _augment,
    "conv": _conv,
    "diagnosis": _diagnosis,
    "input": _input,
    "startup": _startup,
    "trials": _trials,
}


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
