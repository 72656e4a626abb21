"""Convolutions by oneDNN against XLA's own, which `flax.linen.Conv` calls: each by itself, and whole train steps."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

import models
from scripts.benchmarks.turns import in_turns, ratio
from trainer import losses, optim, regularizers, schedules
from trainer import state as state_lib
from trainer.convolution import CONVOLUTIONS
from trainer.convolution_proof import proven
from trainer.data.augment import make_augment, mixing
from trainer.errors import LinseedError
from trainer.parallel import AXIS, DataParallel
from trainer.step import make_train_step

# Height and width, channels, features, kernel, stride, padding: those of the networks below.
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
NETWORKS = {
    "record": {"name": "speednet", "stem_width": 24, "widths": (64, 256, 256), "logit_scale": 1 / 9},
    "resnet20": {"name": "resnet20"},
}
CLASSES, PIXELS = 10, 32


def measure(*, batch: int, rounds: int) -> dict:
    """batch: images of a convolution and of a train step; rounds: see `in_turns`."""
    if not proven():
        raise LinseedError("oneDNN's convolutions were not proven to work here, so that there is nothing to compare")
    steps = {name: _step_times(model, batch=batch, rounds=rounds) for name, model in NETWORKS.items()}
    ratios = {name: round(ratio(times["xla"].wall, times["auto"].wall), 3) for name, times in steps.items()}
    return {
        "batch": batch,
        "gflop_per_second": {str(shape): _speeds(*shape, batch=batch, rounds=rounds) for shape in SHAPES},
        "shapes_are": "height and width, channels, features, kernel, stride, padding; [XLA, ours]",
        "images_per_second": {
            name: {kind: round(batch / statistics.median(times.wall)) for kind, times in found.items()}
            for name, found in steps.items()
        },
        "ratios": ratios,
        "ratio": min(ratios.values()),
        "ratio_is": "time of a train step with XLA's convolutions over the time with ours; the smaller of the networks",
    }


def _speeds(size, channels, features, kernel, stride, pad, *, batch, rounds):
    """GF/s of value and of both gradients, [XLA, ours] each."""
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


def _step_times(model, *, batch, rounds):
    """Train steps of SGD with momentum, without augmentation, as pmap runs them."""
    parallel = DataParallel("pmap", devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.integers(0, 256, (batch, PIXELS, PIXELS, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, batch, dtype=np.int32),
        "mask": np.ones(batch, np.float32),
    }
    calls = {}
    for kind, convolution in CONVOLUTIONS.items():
        built = models.build(**model, num_classes=CLASSES, dtype=jnp.float32, axis_name=AXIS, convolution=convolution)
        calls[kind] = _step_call(built, examples, parallel=parallel)
    return in_turns(calls, rounds=rounds)


def _step_call(model, examples, *, parallel):
    schedule = schedules.make_schedule(name="constant", warmup_steps=0, lr=1.0, total_steps=1000)
    tx = optim.make_tx(
        name="nesterov",
        momentum=0.9,
        weight_decay=5e-4,
        clip="global_norm",
        clip_norm=0.0,
        rules=("rest:",),
        schedule=schedule,
    )
    step = make_train_step(
        model=model,
        tx=tx,
        loss=losses.make_loss(name="softmax", label_smoothing=0.1),
        regularizer=regularizers.make_regularizer(name="none", rules=("rest:",)),
        augment=make_augment(""),
        normalize=lambda images: images - 0.5,
        mix=mixing.make_mix(name="none", num_classes=CLASSES),
        accumulation_parts=1,
        ema_decay=0.0,
    )
    init = state_lib.make_init(model, tx, image_shape=(PIXELS, PIXELS, 3))
    state = state_lib.create(init, seed=0, ema=False)
    state = state.replace(opt_state=optim.with_hyperparams(state.opt_state, lr=0.01, weight_decay=5e-4))
    compiled = parallel.compile(step, donate=False)
    state, examples = parallel.replicate(state), parallel.shard(examples)
    return lambda: compiled(state, examples)
