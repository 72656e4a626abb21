"""ResNet-50 train steps: images/s, and model FLOP/s over the device's peak."""

import statistics
import tempfile
from pathlib import Path

import jax
import ml_collections

from linseed.configs import imagenet_resnet50
from linseed.scripts.bench.cases import synthetic
from linseed.scripts.bench.turns import in_turns, stepper
from linseed.trainer.config.resolve import resolve
from linseed.trainer.experiment import Shared, build
from linseed.trainer.tuning.trials import at_constant_rate

# Peak dense bfloat16 FLOP/s (no sparsity) from data sheets, by the start of the device's name. The first match counts.
# JAX uses either name for a v5p.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
}

# Multiply-adds of a forward pass at 224x224 (He et al. 2015, table 1, with the stride in the 3x3 convolution). Each is
# two FLOPs, and a train step is three forward passes. Scales with the area.
FORWARD_MULTIPLY_ADDS_224 = 4.09e9


def measure(*, batch: int, image_size: int, turn: int, rounds: int) -> dict:
    """batch: images per step. image_size: pixels. turn: steps per turn. Uses generated images kept on the devices."""
    config = ml_collections.ConfigDict(resolve(imagenet_resnet50.get_config()))
    config = synthetic(config, examples=max(2 * batch, 40), image_size=image_size)
    config.data.batch_size = batch
    config = at_constant_rate(config, steps=1, eval_every_steps=1, log_every_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder), shared=Shared())
    place = experiment.parallel
    state, images = place.replicate(experiment.state), place.shard(experiment.feed.batch(0))
    steps = stepper(experiment.train_step, state, [images], steps=turn)
    seconds = statistics.median(in_turns({"step": steps}, rounds=rounds)["step"].wall) / turn
    flops = 6 * FORWARD_MULTIPLY_ADDS_224 * (image_size / 224) ** 2 * batch / seconds
    peak = peak_flops(jax.devices()[0].device_kind)
    utilisation = flops / (peak * jax.device_count()) if peak else None
    return {
        "batch": batch,
        "image_size": image_size,
        "precision": config.precision,
        "rounds": rounds,
        "images_per_second": round(batch / seconds, 1),
        "model_tflops_per_second": round(flops / 1e12, 3),
        "ratio": utilisation and round(utilisation, 3),
        "ratio_is": "model FLOPs over the device's bfloat16 peak; null if the peak is unknown",
    }


def peak_flops(kind: str) -> float | None:
    """Peak FLOP/s of the device that JAX calls `kind`; None if it is not in `PEAK_FLOPS`."""
    return next((peak for start, peak in PEAK_FLOPS.items() if kind.startswith(start)), None)
