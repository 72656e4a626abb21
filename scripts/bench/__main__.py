"""Runs a benchmark and prints one JSON line: figures, a ratio, the machine and the versions.

    python -m scripts.bench NAME --out=docs/benchmarks

A benchmark measures what it compares in turns, so a noisy machine slows both. `accelerator` runs those meant for an
accelerator in one call; `--toy` shrinks them to two CPU cores. There `grid` takes half an hour, mostly for speednet;
--models=linear,mlp,cnn takes seven minutes.
"""

import json
import math
import os
import platform
import time
from pathlib import Path

from absl import flags

from linseed.scripts.cli import command
from linseed.trainer.config.resolve import resolve

BATCH = flags.DEFINE_integer(
    "batch", None, "augment, conv, resnet50: images per batch; none: for conv, each network's own.", lower_bound=1
)
SIZE = flags.DEFINE_integer("size", None, "augment, resnet50: height and width of the images in pixels.", lower_bound=1)
CASE = flags.DEFINE_string("case", "small", "loop, checkpoint, devices: a case of scripts/bench/cases.py.")
STEPS = flags.DEFINE_integer("steps", None, "loop, checkpoint, grid: steps per run.", lower_bound=1)
STEPS_PER_CALL = flags.DEFINE_integer("steps_per_call", 1, "loop: config.steps_per_call.", lower_bound=1)
EVERY = flags.DEFINE_integer("every", 10, "checkpoint: steps between two checkpoints.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "faults: seed of all random draws.", lower_bound=0)
TURN = flags.DEFINE_integer("turn", 3, "devices, resnet50: steps per turn.", lower_bound=1)
MODELS = flags.DEFINE_list("models", ["linear", "mlp", "cnn", "speednet"], "grid: models to try.")
TRIALS = flags.DEFINE_integer("trials", 12, "grid: at most this many trials.", lower_bound=1)
ROOT = flags.DEFINE_string("root", "", "grid, speedrun: CIFAR-10 as class folders; none: generated images, TFDS.")
FAULTS = flags.DEFINE_list("faults", None, "diagnosis: names of the faults to plant; none: all.")
CLEAN = flags.DEFINE_list("clean", None, "diagnosis: names of the clean runs; none: all.")
KILLS = flags.DEFINE_integer("kills", 50, "faults: how many runs to kill.", lower_bound=1)
SIGNALS = flags.DEFINE_integer("signals", 20, "faults: how many runs to stop (SIGTERM).", lower_bound=1)
PARTS = flags.DEFINE_list("parts", None, "faults: names of the parts to run; none: all.")
SEEDS = flags.DEFINE_integer("seeds", None, "speedrun: how many seeds.", lower_bound=0)
EPOCHS = flags.DEFINE_float(
    "epochs", 0.0, "diagnosis, memory: epochs of a plain run; 0: as sound runs, or 8.", lower_bound=0
)
IMAGES = flags.DEFINE_integer("images", None, "input, memory: images to make; none: 256, or 640.", lower_bound=64)
TORCH_PYTHON = flags.DEFINE_string("torch_python", "", "conv: a Python with PyTorch, to time its steps against ours.")
TOY = flags.DEFINE_bool("toy", False, "accelerator: small enough for two CPU cores, to check that it runs.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often to measure each, in turns; medians are reported.", lower_bound=1)
OUT = command.define_path("out", None, "Folder to write the result into as NAME.json.")
MINUTES = 9  # the limit of `accelerator`


def _case(name):
    from linseed.scripts.bench.cases import CASES
    from linseed.trainer.errors import LinseedError, unknown_name

    if name not in CASES:
        raise LinseedError(unknown_name("case", name, CASES))
    return CASES[name]()


def _accelerator():
    """`loop`, `checkpoint`, `resnet50`, and `speedrun` with as many seeds as fit into `MINUTES`."""
    from linseed.trainer.data import sources

    toy = TOY.value
    case, rounds, end = "digits" if toy else "resnet18", 1 if toy else 5, time.monotonic() + 60 * MINUTES
    speedrun = _speedrun_config(toy=toy)
    sources.load(**speedrun.data.source)  # missing data fails here, not after the other parts
    parts = {
        "loop": lambda: _loop(_case(case), steps=20 if toy else 400, rounds=rounds),
        "checkpoint": lambda: _checkpoint(
            _case(case), steps=20 if toy else 200, every=10 if toy else 50, rounds=rounds
        ),
        "resnet50": lambda: _resnet50(batch=8 if toy else 256, size=32 if toy else 224, rounds=rounds),
        "speedrun": lambda: _speedrun(speedrun, seeds=1 if toy else 5, within=end - time.monotonic()),
    }
    found = {}
    for name, part in parts.items():
        began = time.monotonic()
        found[name] = part()
        found[name]["wall_seconds"] = round(time.monotonic() - began, 1)
    return {"toy": toy, **found, "ratio": found["loop"]["ratio"], "ratio_is": found["loop"]["ratio_is"]}


def _augment():
    from linseed.scripts.bench import augment

    return augment.measure(batch=BATCH.value or 256, size=SIZE.value or 32, rounds=ROUNDS.value)


def _checkpoint(config=None, *, steps=None, every=None, rounds=None):
    from linseed.scripts.bench import checkpoint

    config = config or _case(CASE.value)
    return checkpoint.measure(
        config=config, steps=steps or STEPS.value or 60, every=every or EVERY.value, rounds=rounds or ROUNDS.value
    )


def _conv():
    from linseed.scripts.bench import conv

    return conv.measure(batch=BATCH.value or 0, rounds=ROUNDS.value, torch_python=TORCH_PYTHON.value)


def _devices():
    from linseed.scripts.bench import devices

    return devices.measure(config=_case(CASE.value), turn=TURN.value, rounds=ROUNDS.value)


def _diagnosis():
    from linseed.scripts.bench import diagnosis, diagnosis_cases

    faults = list(diagnosis_cases.FAULTS) if FAULTS.value is None else FAULTS.value
    clean = list(diagnosis_cases.CLEAN) if CLEAN.value is None else CLEAN.value
    return diagnosis.measure(faults=faults, clean=clean, epochs=EPOCHS.value)


def _faults():
    from linseed.scripts.faults import faults

    parts = list(faults.PARTS) if PARTS.value is None else PARTS.value
    return faults.measure(parts=parts, kills=KILLS.value, signals=SIGNALS.value, seed=SEED.value)


def _grid():
    from linseed.scripts.bench import grid

    kwargs = {"models": MODELS.value, "trials": TRIALS.value, "steps": STEPS.value or 200, "root": ROOT.value}
    return grid.measure(**kwargs, rounds=ROUNDS.value)


def _input():
    from linseed.scripts.bench import input as input_

    return input_.measure(images=IMAGES.value or 256, rounds=ROUNDS.value)


def _loop(config=None, *, steps=None, rounds=None):
    from linseed.scripts.bench import loop

    config = config or _case(CASE.value)
    config.steps_per_call = STEPS_PER_CALL.value
    return loop.measure(config=config, steps=steps or STEPS.value or 60, rounds=rounds or ROUNDS.value)


def _memory():
    from linseed.scripts.bench import memory

    return memory.measure(epochs=round(EPOCHS.value) or 8, images=IMAGES.value or 640)


def _resnet50(*, batch=None, size=None, rounds=None):
    from linseed.scripts.bench import resnet50

    batch, size = batch or BATCH.value or 256, size or SIZE.value or 224
    return resnet50.measure(batch=batch, image_size=size, turn=TURN.value, rounds=rounds or ROUNDS.value)


def _speedrun(config=None, *, seeds=None, within=math.inf):
    from linseed.scripts.bench import speedrun

    config = config or _speedrun_config(toy=False)
    if seeds is None:
        seeds = 5 if SEEDS.value is None else SEEDS.value
    return speedrun.measure(config=config, seeds=seeds, within=within)


def _speedrun_config(*, toy):
    from linseed.configs import cifar10_speedrun
    from linseed.scripts.bench.cases import synthetic

    if toy:
        return synthetic(resolve(cifar10_speedrun.get_config("quick")), examples=400, image_size=32)
    return resolve(cifar10_speedrun.get_config(f"root={ROOT.value}" if ROOT.value else ""))


def _startup():
    from linseed.scripts.bench import startup

    return startup.measure(rounds=ROUNDS.value)


BENCHMARKS = {
    "accelerator": _accelerator,
    "augment": _augment,
    "checkpoint": _checkpoint,
    "conv": _conv,
    "devices": _devices,
    "diagnosis": _diagnosis,
    "faults": _faults,
    "grid": _grid,
    "input": _input,
    "loop": _loop,
    "memory": _memory,
    "resnet50": _resnet50,
    "speedrun": _speedrun,
    "startup": _startup,
}


def main(console, name):
    import jax

    from linseed.trainer.errors import LinseedError, unknown_name
    from linseed.trainer.run.result import versions

    if name not in BENCHMARKS:
        raise LinseedError(unknown_name("benchmark", name, BENCHMARKS))
    result = {
        "benchmark": name,
        **BENCHMARKS[name](),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
    line = json.dumps(result)
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        (Path(OUT.value) / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run():
    command.run(main, argument="NAME")


if __name__ == "__main__":
    run()
