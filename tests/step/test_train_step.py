"""The steps and their placement: same numbers for every backend and any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linseed.models.cnn import Cnn
from linseed.models.layers import Compute
from linseed.models.linear import Linear
from linseed.trainer.data.augment import make_augment
from linseed.trainer.data.augment.mixing import make_mix
from linseed.trainer.optim import chain, schedules
from linseed.trainer.optim.regularizers import make_regularizer
from linseed.trainer.runtime.data_parallel import AXIS, BACKENDS, DataParallel
from linseed.trainer.step import losses
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.eval_step import make_eval_step, make_logits
from linseed.trainer.step.train_step import image_keys, make_train_step, moving_average
from linseed.trainer.step.tta import VIEWS

BATCH, CLASSES, SHAPE = 16, 3, (8, 8, 3)
COMPUTE = Compute(jnp.float32, axis_name=AXIS, convolution=jax.lax.conv_general_dilated)


@pytest.fixture(scope="module")
def model():
    return Cnn(widths=(4, 8), num_classes=CLASSES, compute=COMPUTE)


@pytest.fixture(scope="module")
def tx():
    schedule = schedules.make_schedule("cosine", lr=0.1, warmup_steps=2, total_steps=10)
    return chain.make_tx("nesterov", schedule=schedule, clip_norm=1.0, momentum=0.9, weight_decay=1e-3)


def make_batch(step, *, size=BATCH, padding=0):
    rng = np.random.default_rng(step)
    mask = np.ones(size, np.float32)
    mask[size - padding :] = 0
    return {
        "image": rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size, dtype=np.int32),
        "mask": mask,
        "index": rng.permutation(size).astype(np.int32),
        "epoch": np.full(size, step, np.int32),
    }


def train_step_of(model, tx, *, augment="", ema_decay=0.0):
    return make_train_step(
        model=model,
        tx=tx,
        loss=losses.make_loss("softmax", label_smoothing=0.1),
        regularizer=make_regularizer("none", rules=("rest:",)),
        augment=make_augment(augment),
        normalize=lambda images: (images - 0.5) / 0.25,
        mix=make_mix("none", num_classes=CLASSES),
        accumulation_parts=1,
        ema_decay=ema_decay,
        remat=lambda forward: forward,
        trained=lambda params: params,
    )


def run_steps(model, tx, *, backend, devices, steps=4, augment="", ema_decay=0.0):
    """Returns the state, the last metrics, how often the step was traced and how often XLA compiled it."""
    parallel = DataParallel(backend, devices=jax.devices()[:devices])
    traces = []
    inner = train_step_of(model, tx, augment=augment, ema_decay=ema_decay)

    def train_step(state, batch):
        traces.append(1)
        return inner(state, batch)

    compiled = parallel.compile(train_step, donate=True)
    state = state_lib.create(state_lib.make_init(model, tx, image_shape=SHAPE), seed=1, ema=ema_decay > 0)
    state = parallel.replicate(state)
    compiles = []
    listen = jax.monitoring.register_event_duration_secs_listener
    listen(lambda name, *_, **__: compiles.append(name) if name.endswith("backend_compile_duration") else None)
    try:
        with jax.transfer_guard("disallow"):
            for step in range(steps):
                state, metrics = compiled(state, parallel.shard(make_batch(step)))
    finally:
        jax.monitoring.clear_event_listeners()
    return jax.device_get(state), jax.device_get(metrics), len(traces), len(compiles)


def assert_close(a, b, tolerance):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def one_device(model, tx):
    return run_steps(model, tx, backend="pmap", devices=1)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_backends_and_device_counts_agree_and_compile_once(model, tx, one_device, backend, devices):
    state, metrics, traces, compiles = run_steps(model, tx, backend=backend, devices=devices)
    assert (traces, compiles) == (1, 1)
    assert_close(state.params, one_device[0].params, 1e-6)
    assert_close(state.model_state, one_device[0].model_state, 1e-6)
    assert_close(metrics, one_device[1], 1e-5)
    assert metrics["examples"] == BATCH


def test_backends_agree_with_augmentation_and_averaging(model, tx):
    spec = "alternating_flip()|pad_crop(1)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)"
    pmap, shard_map = (
        run_steps(model, tx, backend=backend, devices=4, augment=spec, ema_decay=0.9)[0] for backend in BACKENDS
    )
    assert_close(pmap, shard_map, 1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_image_key_depends_on_its_place_in_the_global_batch_alone(devices):
    def keys(root, batch):
        mine = jax.random.key_data(image_keys(jax.random.wrap_key_data(root), len(batch["mask"])))
        return jax.lax.all_gather(mine, AXIS, tiled=True)

    root = jax.random.key(3)
    # pmap, because a gathered value is replicated in fact but not in shard_map's types.
    parallel = DataParallel("pmap", devices=jax.devices()[:devices])
    compiled = parallel.compile(keys, donate=False)
    found = compiled(parallel.replicate(jax.random.key_data(root)), parallel.shard(make_batch(0)))
    expected = [jax.random.key_data(jax.random.fold_in(root, place)) for place in range(BATCH)]
    np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_the_update_is_that_of_the_mean_loss_over_the_real_examples(backend):
    """Against plain jax.grad on one device: no factor of the number of devices, no weight on padding."""

    class Linear:
        def init(self, key, images, *, train):
            return {"params": {"w": jnp.full((np.prod(SHAPE), CLASSES), 0.01)}}

        def apply(self, variables, images, *, train, rngs=None, mutable=False):
            logits = images.reshape(len(images), -1) @ variables["params"]["w"]
            return (logits, {}) if mutable is not False else logits

    tx = chain.make_tx("sgd", schedule=lambda _: 0.5, clip_norm=0.0, weight_decay=0.0)
    parallel = DataParallel(backend, devices=jax.devices()[:4])
    compiled = parallel.compile(train_step_of(Linear(), tx), donate=False)
    before = state_lib.create(state_lib.make_init(Linear(), tx, image_shape=SHAPE), seed=0, ema=False)
    batch = make_batch(0, padding=5)
    after, metrics = jax.device_get(compiled(parallel.replicate(before), parallel.shard(batch)))

    def mean_loss(w):
        images = (batch["image"][:-5] / np.float32(255) - 0.5) / 0.25
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"][:-5], CLASSES), 0.1)
        return optax.softmax_cross_entropy(images.reshape(len(images), -1) @ w, targets).mean()

    loss, grad = jax.value_and_grad(mean_loss)(before.params["w"])
    np.testing.assert_allclose(after.params["w"], before.params["w"] - 0.5 * grad, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"] / metrics["examples"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(grad), rtol=1e-5)
    ratio = 0.5 * jnp.linalg.norm(grad) / jnp.linalg.norm(before.params["w"])
    np.testing.assert_allclose(metrics["update_ratio"], ratio, rtol=1e-5)
    assert metrics["examples"] == BATCH - 5
    assert metrics["lr"] == 0.5


def test_the_logged_rate_is_the_applied_one(model, tx):
    schedule = schedules.make_schedule("cosine", lr=0.1, warmup_steps=2, total_steps=10)
    for steps in (1, 2, 4):
        metrics = run_steps(model, tx, backend="pmap", devices=1, steps=steps)[1]
        np.testing.assert_allclose(metrics["lr"], schedule(steps - 1), rtol=1e-6)


def test_moving_average_is_its_formula_and_covers_batch_statistics(model, tx):
    decay, average = 0.5, np.float32(2.0)
    for step, value in enumerate([1.0, 5.0, -3.0]):
        d = min(decay, (1 + step) / (10 + step))
        expected = d * average + (1 - d) * value
        average = moving_average(average, np.float32(value), decay=decay, step=step)
        np.testing.assert_allclose(average, expected, rtol=1e-6)
    first = state_lib.create(state_lib.make_init(model, tx, image_shape=SHAPE), seed=1, ema=True)
    after = run_steps(model, tx, backend="pmap", devices=1, steps=1, ema_decay=0.99)[0]
    now = {"params": after.params, "model_state": after.model_state}
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, first.ema, now)  # (1 + 0) / (10 + 0)
    assert_close(after.ema, expected, 1e-6)
    assert (after.ema["model_state"]["batch_stats"]["block1"]["norm"]["mean"] != 0).any()


def test_each_device_has_a_dropout_of_its_own(tx):
    """A model whose state is the keys that its devices were given."""

    class Recorder:
        def init(self, key, images, *, train):
            return {"params": {"w": jnp.ones((2, CLASSES))}, "keys": jnp.zeros((4, 2), jnp.uint32)}

        def apply(self, variables, images, *, train, rngs, mutable):
            keys = jax.lax.all_gather(jax.random.key_data(rngs["dropout"]), AXIS)
            return jnp.ones((len(images), 2)) @ variables["params"]["w"], {"keys": keys}

    first, second = (run_steps(Recorder(), tx, backend="pmap", devices=4, steps=steps)[0] for steps in (1, 2))
    assert len({tuple(key) for key in np.concatenate([first.model_state["keys"], second.model_state["keys"]])}) == 8


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_does_not_count_padding(model, tx, devices, backend):
    parallel = DataParallel(backend, devices=jax.devices()[:devices])
    logits = make_logits(model=model, normalize=lambda images: images, views=VIEWS["none"])
    eval_step = make_eval_step(logits=logits, loss=losses.make_loss("softmax", label_smoothing=0.0))
    compiled = parallel.compile(eval_step, donate=False)
    state = state_lib.create(state_lib.make_init(model, tx, image_shape=SHAPE), seed=1, ema=False)
    weights = parallel.replicate(state_lib.evaluated_weights(state))
    batch = make_batch(0)
    changed = make_batch(0, padding=6)
    changed["image"][-6:] = 255 - changed["image"][-6:]
    short = {key: np.concatenate([value[:-6], value[:6]]) for key, value in batch.items()}
    short["mask"][-6:] = 0
    a, examples = jax.device_get(compiled(weights, parallel.shard(changed)))
    b, _ = jax.device_get(compiled(weights, parallel.shard(short)))
    assert a["examples"].sum() == BATCH - 6
    assert_close(a, b, 1e-5)
    np.testing.assert_array_equal(examples["label"], changed["label"])  # each example is in its row
    np.testing.assert_array_equal(examples["mask"], changed["mask"])
    np.testing.assert_allclose(examples["brightness"], changed["image"].mean(axis=(1, 2, 3)), rtol=1e-5)
    alone = logits(state_lib.evaluated_weights(state), changed["image"])
    np.testing.assert_allclose(examples["logits"], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_low_and_keeps_state_high(tx):
    def metrics_of(dtype):
        model = Cnn(widths=(4,), num_classes=CLASSES, compute=COMPUTE._replace(dtype=dtype))
        state, metrics, _, _ = run_steps(model, tx, backend="pmap", devices=2)
        assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.model_state))} == {np.dtype("float32")}
        return metrics["loss"] / metrics["examples"]

    low, high = metrics_of(jnp.bfloat16), metrics_of(jnp.float32)
    assert low != high and low == pytest.approx(high, rel=0.05)


def test_a_model_that_starts_at_zero_has_finite_metrics(tx):
    model = Linear(num_classes=CLASSES, compute=COMPUTE)
    _, metrics, _, _ = run_steps(model, tx, backend="pmap", devices=2, steps=1)
    assert all(np.isfinite(value) for value in metrics.values())
