"""Every part by name trains: each optimiser with each schedule, and the parts of the step together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.optimizer_formulas import FORMULAS

from linseed.models.cnn import Cnn
from linseed.models.layers import Compute
from linseed.trainer.data import batching, sources
from linseed.trainer.data.augment import make_augment
from linseed.trainer.data.augment.mixing import MIXING, make_mix
from linseed.trainer.optim import schedules
from linseed.trainer.optim.chain import make_tx
from linseed.trainer.optim.optimizers import OPTIMIZERS
from linseed.trainer.optim.regularizers import REGULARIZERS, make_regularizer
from linseed.trainer.optim.rules import without_frozen_gradients
from linseed.trainer.optim.schedules import SCHEDULES, make_schedule
from linseed.trainer.runtime.data_parallel import AXIS, BACKENDS, DataParallel
from linseed.trainer.step import losses
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.train_step import make_train_step

BATCH = 64
STEPS = 22  # one epoch of the 1,437 training digits
SCHEDULE_PARAMETERS = {
    "inverse_sqrt": dict(timescale_steps=5),
    "one_cycle": dict(rise_steps=6, div_factor=10.0, final_div_factor=100.0),
    "plateau": dict(factor=0.5, patience=1, rtol=1e-4, window_steps=2),
    "sgdr": dict(cycle_steps=5, cycle_factor=2.0),
    "step": dict(at_steps=(12, 18), factor=0.1),
}
PARAMETERS = {name: parameters | {"weight_decay": 1e-4} for name, (_, parameters) in FORMULAS.items()}
PARAMETERS["lbfgs"] = dict(memory_size=10, max_linesearch_steps=10)
# Rates at which a linear classifier learns in one epoch. The others: 0.1.
RATES = {"lars": 3.0, "lbfgs": 1.0, "lion": 0.01, "sgd": 0.5, "adagrad": 0.05} | dict.fromkeys(
    ("adam", "adam_uncorrected", "adamw", "nadam", "rmsprop", "muon", "muon_nesterov", "schedule_free"), 0.03
)
RATES |= dict.fromkeys(("adafactor", "lamb"), 0.3)


def train_batch(train, step, *, batch_size):
    return batching.gather(train, batching.places(step, seed=0, num_examples=len(train.labels), batch_size=batch_size))


@pytest.fixture(scope="module")
def digits():
    train = sources.load("digits", test_fraction=0.2, split_seed=0).train
    batches = [train_batch(train, step, batch_size=BATCH) for step in range(STEPS)]
    images = np.stack([batch["image"] for batch in batches]).reshape(STEPS, BATCH, -1) / np.float32(255)
    return images, np.stack([batch["label"] for batch in batches])


def epoch_losses(name, schedule, digits):
    """The loss of each step of one epoch of a linear softmax classifier; `schedule` may be traced."""
    tx = make_tx(name, schedule=schedule, clip_norm=0.0, **PARAMETERS[name])

    def step(carry, batch):
        params, opt_state = carry

        def value_fn(params):
            logits = batch[0] @ params["head"]["kernel"] + params["head"]["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        value, grads = jax.value_and_grad(value_fn)(params)
        extra = dict(value=value, grad=grads, value_fn=value_fn, grad_fn=jax.grad(value_fn))
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), value

    params = {"head": {"kernel": 0.01 * jax.random.normal(jax.random.key(0), (64, 10)), "bias": jnp.zeros(10)}}
    return jax.lax.scan(step, (params, tx.init(params)), digits)[1]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_learns_with_every_schedule(name, digits):
    """One compile an optimiser: the schedules' rates are data, side by side. `plateau` has a state, and its own."""
    lr = RATES.get(name, 0.1)
    if name == "lbfgs":  # wants the same loss each step
        digits = tuple(np.repeat(part[:1], STEPS, axis=0) for part in digits)
    made = {
        schedule: make_schedule(
            schedule, lr=lr, warmup_steps=4, total_steps=STEPS + 1, **SCHEDULE_PARAMETERS.get(schedule, {})
        )
        for schedule in SCHEDULES
    }
    tables = {key: np.array([made[key](step) for step in range(STEPS)]) for key in made if key != "plateau"}
    together = jax.jit(jax.vmap(lambda table: epoch_losses(name, lambda count: table[count], digits)))
    found = dict(zip(tables, together(np.stack(list(tables.values()), dtype=np.float32)), strict=True))
    if name != "schedule_free":  # which refuses it
        found["plateau"] = jax.jit(lambda: epoch_losses(name, made["plateau"], digits))()
    for schedule, values in found.items():
        first, last = np.mean(values[:3]), np.mean(values[-3:])
        assert np.isfinite(values).all() and last < 0.9 * first, f"{schedule}: {first:.3f} -> {last:.3f}"


def run(*, backend="pmap", devices=2, steps=12, batch=None, dropout=0.0, normalization="none", **parts):
    """`steps` steps through the real, compiled train step; returns the state and each step's mean loss."""
    train = sources.load("synthetic", num_examples=96, num_classes=3, image_size=8, channels=3, seed=0).train
    compute = Compute(jnp.float32, axis_name=AXIS, convolution=jax.lax.conv_general_dilated)
    model = Cnn(widths=(8,), normalization=normalization, dropout=dropout, num_classes=3, compute=compute)
    tx = parts.pop("tx", None) or make_tx("sgd", schedule=optax.constant_schedule(0.1), clip_norm=0.0, weight_decay=0.0)
    defaults = dict(
        loss=losses.make_loss("softmax", label_smoothing=0.0),
        regularizer=make_regularizer("none", rules=("rest:",)),
        augment=make_augment(""),
        normalize=lambda images: (images - 0.5) / 0.25,
        mix=make_mix("none", num_classes=3),
        accumulation_parts=1,
        ema_decay=0.0,
        remat=lambda forward: forward,
        trained=lambda params: params,
    )
    parallel = DataParallel(backend, devices=jax.devices()[:devices])
    step = parallel.compile(make_train_step(model=model, tx=tx, **{**defaults, **parts}), donate=True)
    state = parallel.replicate(
        state_lib.create(state_lib.make_init(model, tx, image_shape=(8, 8, 3)), seed=0, ema=False)
    )
    found = []
    for number in range(steps):
        data = batch or train_batch(train, number, batch_size=32)
        state, metrics = step(state, parallel.shard(data))
        jax.block_until_ready(state)
        found.append(float(metrics["loss"] / metrics["examples"]))
    return jax.device_get(state), found


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_lbfgs_searches_through_the_step_and_fits_the_whole_batch(backend):
    train = sources.load("synthetic", num_examples=96, num_classes=3, image_size=8, channels=3, seed=0).train
    tx = make_tx("lbfgs", schedule=lambda _: 1.0, clip_norm=0.0, memory_size=10, max_linesearch_steps=15)
    whole = batching.gather(train, batching.all_places(0, num_examples=96, multiple=2))
    _, found = run(backend=backend, tx=tx, batch=whole, steps=25)
    assert found[-1] < 0.02 and all(b <= a + 1e-6 for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_sharpness_aware_minimisation_takes_its_second_gradient_through_the_step(backend):
    tx = make_tx("sam", schedule=lambda _: 0.1, clip_norm=0.0, rho=0.05, momentum=0.9, weight_decay=0.0)
    _, found = run(backend=backend, tx=tx)
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_accumulation_is_the_large_batch(backend):
    whole, pieces = (run(backend=backend, accumulation_parts=parts, steps=4)[0] for parts in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, pieces.params)


def test_accumulation_hands_the_statistics_of_batch_norm_from_piece_to_piece():
    whole, pieces = (run(accumulation_parts=parts, normalization="batch", steps=1)[0] for parts in (1, 4))
    moved = [jax.tree.leaves(state.model_state["batch_stats"]) for state in (whole, pieces)]
    # Four updates with momentum 0.9 go 1 - 0.9^4 of the way, one goes 0.1 of it.
    mean_whole, mean_pieces = moved[0][0], moved[1][0]
    np.testing.assert_allclose(mean_pieces, mean_whole * (1 - 0.9**4) / 0.1, rtol=0.2, atol=0.05)


plain_run = functools.cache(run)


@pytest.mark.parametrize("name", sorted(set(REGULARIZERS) - {"none"}))
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_regularizer_enters_the_gradient_once_whatever_the_devices(name, backend):
    parameters = dict(strength=0.05) | (dict(beta=0.5) if name == "elastic_net" else {})
    regularizer = make_regularizer(name, rules=("rest:",), **parameters)
    start, plain = (plain_run(backend=backend, steps=steps)[0].params for steps in (0, 1))
    regular = run(backend=backend, steps=1, regularizer=regularizer)[0].params
    expected = 0.1 * jax.grad(regularizer)(start)["head"]["kernel"]
    np.testing.assert_allclose(plain["head"]["kernel"] - regular["head"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(MIXING))
def test_mixing_trains(name):
    mix = make_mix(name, num_classes=3, **({} if name == "none" else {"alpha": 1.0}))
    _, found = run(mix=mix, steps=12)
    assert np.isfinite(found).all() and found[-1] < found[0]


@pytest.mark.parametrize("name", ["sigmoid", "svm"])
def test_the_other_losses_train(name):
    _, found = run(loss=losses.make_loss(name, label_smoothing=0.0), steps=12)
    assert found[-1] < 0.9 * found[0]


def test_a_frozen_parameter_stays_bit_for_bit():
    rules = ("block1/.*: frozen", "rest:")
    tx = make_tx("sgd", schedule=lambda _: 0.1, clip_norm=0.0, weight_decay=0.1, rules=rules)
    trained = functools.partial(without_frozen_gradients, rules)
    before, after = (run(tx=tx, steps=steps, trained=trained)[0].params for steps in (0, 3))
    jax.tree.map(np.testing.assert_array_equal, before["block1"], after["block1"])
    assert (before["head"]["kernel"] != after["head"]["kernel"]).any()


def test_lr_per_batch_scales_with_the_batch():
    assert schedules.scaled_lr(0.1, batch_size=1024, lr_per_batch=256) == pytest.approx(0.4)
    assert schedules.scaled_lr(0.1, batch_size=1024, lr_per_batch=0) == 0.1
