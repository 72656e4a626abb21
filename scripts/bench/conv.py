"""oneDNN's convolutions against XLA's, which `flax.linen.Conv` calls: each alone, and in whole train steps.

Given a Python with PyTorch, it also times PyTorch's steps, in their own process, in turns with ours.
"""

import contextlib
import functools
import statistics
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from linseed.configs import cifar10_resnet20, cifar10_speedrun
from linseed.scripts.bench.cases import synthetic
from linseed.scripts.bench.turns import in_turns, ratio, stepper
from linseed.trainer.config.changes import changed
from linseed.trainer.errors import LinseedError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.runtime.onednn import CONVOLUTIONS
from linseed.trainer.runtime.onednn_probe import proven
from linseed.trainer.tuning.trials import at_constant_rate

# Height and width, channels, features, kernel, stride, padding: from the networks below.
SHAPES = (
    (32, 3, 24, 2, 1, 0),
    (31, 24, 64, 3, 1, 1),
    (15, 64, 64, 3, 1, 1),
    (15, 64, 256, 3, 1, 1),
    (7, 256, 256, 3, 1, 1),
    (32, 16, 16, 3, 1, 1),
    (32, 16, 32, 3, 2, 1),
    (16, 32, 32, 3, 1, 1),
    (16, 32, 64, 3, 2, 1),
    (8, 64, 64, 3, 1, 1),
)
NETWORKS = {"record": cifar10_speedrun.get_config, "resnet20": cifar10_resnet20.get_config}
PIXELS = 32
SHAPES_BATCH = 256


def measure(*, batch: int, rounds: int, torch_python: str) -> dict:
    """batch: images of a convolution and of a train step; 0: `SHAPES_BATCH`, and each network's config.

    rounds: see `in_turns`. torch_python: "" for no PyTorch.
    """
    if not proven():
        raise LinseedError("oneDNN's convolutions were not proven to work here: there is nothing to compare")
    configs = {name: get_config() for name, get_config in NETWORKS.items()}
    batches = {name: batch or config.data.batch_size for name, config in configs.items()}
    steps = {}
    for name, config in configs.items():
        with _torch_step(name, batch=batches[name], python=torch_python) as torch:
            steps[name] = _step_times(config, batch=batches[name], rounds=rounds, others=torch)
    ratios = {name: round(ratio(times["xla"].wall, times["auto"].wall), 3) for name, times in steps.items()}
    found = {
        "batches": batches,
        "rounds": rounds,
        "shapes_batch": batch or SHAPES_BATCH,
        "gflop_per_second": {
            str(shape): _speeds(*shape, batch=batch or SHAPES_BATCH, rounds=rounds) for shape in SHAPES
        },
        "shapes_are": "height and width, channels, features, kernel, stride, padding; [XLA, ours]",
        "images_per_second": {
            name: {kind: round(batches[name] / statistics.median(times.wall)) for kind, times in found.items()}
            for name, found in steps.items()
        },
        "cpu_ratios": {name: round(ratio(times["xla"].cpu, times["auto"].cpu), 3) for name, times in steps.items()},
        "ratios": ratios,
        "ratio": min(ratios.values()),
        "ratio_is": "time of a train step with XLA's convolutions over the time with ours; the smaller of the networks",
    }
    if torch_python:
        kinds = [f"torch over {kind}" for kind in CONVOLUTIONS]
        found["torch_ratios"] = {
            name: {kind: round(ratio(times["torch"].wall, times[kind.split()[-1]].wall), 3) for kind in kinds}
            for name, times in steps.items()
        }
    return found


@contextlib.contextmanager
def _torch_step(name, *, batch, python):
    """{"torch": a call that makes one step of PyTorch}, or {} without `python`."""
    if not python:
        yield {}
        return
    command = [python, "-m", "scripts.bench.torch_steps", name, str(batch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        if not child.stdout.readline():
            raise LinseedError(f"{python} cannot import torch; give --torch_python a Python that has PyTorch")

        def call():
            print("step", file=child.stdin, flush=True)
            return float(child.stdout.readline())

        yield {"torch": call}
        child.stdin.close()


def _speeds(size, channels, features, kernel, stride, pad, *, batch, rounds):
    """GF/s of the value and of both gradients, [XLA, ours] each."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), jnp.float32)
    out = (size + 2 * pad - kernel) // stride + 1
    g = jnp.asarray(rng.normal(size=(batch, out, out, features)), jnp.float32)
    calls = {}
    for kind, convolution in CONVOLUTIONS.items():
        conv = functools.partial(
            convolution,
            window_strides=(stride, stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        forward = jax.jit(conv)
        calls["forward", kind] = functools.partial(forward, x, weights)
        for part, index in (("input_gradient", 0), ("kernel_gradient", 1)):
            calls[part, kind] = functools.partial(jax.jit(_gradient(conv, index)), x, weights, g)
    times = in_turns(calls, rounds=rounds)
    gflop = 2e-9 * batch * out * out * kernel * kernel * channels * features
    parts = ("forward", "input_gradient", "kernel_gradient")
    return {
        part: [round(gflop / statistics.median(times[part, kind].wall), 1) for kind in ("xla", "auto")]
        for part in parts
    }


def _gradient(conv, index):
    return lambda x, weights, g: jax.vjp(conv, x, weights)[1](g)[index]


def _step_times(config, *, batch, rounds, others):
    """Times train steps of `config` like the loop's, on generated images, in turns with the calls `others`."""
    config = synthetic(config, examples=2 * batch, image_size=PIXELS)
    config.data.batch_size, config.precision = batch, "float32"
    config = at_constant_rate(config, steps=1, eval_every_steps=1, log_every_steps=1)
    calls = dict(others)
    with tempfile.TemporaryDirectory() as folder:
        for kind in CONVOLUTIONS:
            experiment = build(changed(config, {"convolution": kind}), Path(folder), shared=Shared())
            place = experiment.parallel
            state, images = place.replicate(experiment.state), place.shard(experiment.feed.batch(0))
            calls[kind] = stepper(experiment.train_step, state, [images], steps=1)
    return in_turns(calls, rounds=rounds)
