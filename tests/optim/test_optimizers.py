"""Each optimiser against its formula in NumPy, and what decay, clipping, rules and the rate act on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.optimizer_formulas import DECAY, FORMULAS, LR, SHAPE, SLOPES, START

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim.chain import CLIPS, applied_lr, evaluated_params, make_tx
from linseed.trainer.optim.optimizers import DEFAULT_LR, OPTIMIZERS
from linseed.trainer.optim.rules import decay_mask
from linseed.trainer.optim.schedules import make_schedule

LBFGS = dict(memory_size=10, max_linesearch_steps=20)


def constant_tx(name, *, lr=LR, clip_norm=0.0, **kwargs):
    if name != "lbfgs":
        kwargs = {"weight_decay": 0.0, **FORMULAS[name][1], **kwargs}
    return make_tx(name, schedule=optax.constant_schedule(lr), clip_norm=clip_norm, **kwargs)


def test_every_optimizer_has_its_formula_here():
    assert {*FORMULAS, "lbfgs"} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_update_is_the_formula(name):
    tx = constant_tx(name, weight_decay=DECAY)
    params = {"kernel": jnp.asarray(START, jnp.float32)}
    state = tx.init(params)

    @jax.jit
    def step(params, state, slopes):
        grad_fn = jax.grad(lambda params: jnp.sum(slopes * params["kernel"] + 0.15 * params["kernel"] ** 2))
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    for t, expected in enumerate(FORMULAS[name][0](START)):
        params, state = step(params, state, jnp.asarray(SLOPES[t], jnp.float32))
        # In float32 the first 1 - b2^t of Adam are known to about 1e-4.
        np.testing.assert_allclose(params["kernel"], expected, rtol=3e-4, atol=1e-5, err_msg=f"step {t + 1}")


def first_step(tx, params, grads):
    def step(params, grads):
        return tx.update(grads, tx.init(params), params, grad_fn=lambda _: grads)[0]

    return jax.jit(step)(params, grads)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_decay_spares_biases_and_norm_scales(name):
    params = {"conv": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    updates = first_step(constant_tx(name, weight_decay=0.5), params, optax.tree.zeros_like(params))
    assert (updates["conv"]["kernel"] < 0).all()
    assert (updates["norm"]["scale"] == 0).all() and (updates["norm"]["bias"] == 0).all()
    assert decay_mask(params) == {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}}


@pytest.mark.parametrize("name", ["adagrad", "adam_uncorrected", "rmsprop"])
def test_a_tiny_gradient_shows_that_eps_stands_outside_the_root(name):
    # With the lecture's 1e-7: g / (sqrt(s) + eps), s as small as g^2. Inside, eps would swallow it.
    g = 1e-6
    shares = {"adagrad": 1.0, "adam_uncorrected": 0.001, "rmsprop": 0.1}
    lead = {"adagrad": 1.0, "adam_uncorrected": 0.1, "rmsprop": 1.0}
    tx = constant_tx(name, lr=1.0, eps=1e-7)
    updates = first_step(tx, {"kernel": jnp.zeros((1, 1))}, {"kernel": jnp.full((1, 1), g)})
    expected = -lead[name] * g / (np.sqrt(shares[name]) * g + 1e-7)
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


def test_without_correction_the_first_step_of_adam_is_three_times_too_long():
    params, grads = {"a": jnp.zeros((1, 1))}, {"a": jnp.full((1, 1), 5.0)}
    steps = {n: first_step(constant_tx(n, eps=1e-8), params, grads)["a"] for n in ("adam", "adam_uncorrected")}
    np.testing.assert_allclose(steps["adam"], -LR, rtol=1e-5)
    np.testing.assert_allclose(steps["adam_uncorrected"], -LR * 0.1 / np.sqrt(0.001), rtol=1e-4)


def test_lbfgs_refuses_what_spoils_its_gradient():
    with pytest.raises(ConfigError, match="clip_norm to 0"):
        constant_tx("lbfgs", clip_norm=1.0, **LBFGS)
    with pytest.raises(ConfigError, match="no lr in the rules"):
        constant_tx("lbfgs", rules=(".*: lr=2",), **LBFGS)


# Clipping.


def global_norm(grads, params, threshold):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {key: g * min(1, threshold / norm) for key, g in grads.items()}


def by_value(grads, params, threshold):
    return {key: np.clip(g, -threshold, threshold) for key, g in grads.items()}


def adaptive(grads, params, threshold):
    axes = {1: None, 2: 0, 4: (0, 1, 2)}

    def norm(x):
        return np.sqrt((x**2).sum(axes[x.ndim], keepdims=True))

    largest = {key: threshold * np.maximum(norm(x), 1e-3) for key, x in params.items()}
    return {key: g * np.minimum(1, largest[key] / norm(g)) for key, g in grads.items()}


CLIP_FORMULAS = {"adaptive": adaptive, "global_norm": global_norm, "value": by_value}


@pytest.mark.parametrize("threshold", [0.3, 1e3])
@pytest.mark.parametrize("name", sorted(CLIPS))
def test_clipping_is_the_formula_and_comes_before_decay(name, threshold):
    rng = np.random.default_rng(0)
    shapes = {"bias": (4,), "conv": (3, 3, 2, 4), "dense": (5, 4)}
    params, grads = ({key: rng.normal(size=s) for key, s in shapes.items()} for _ in range(2))
    tx = constant_tx("sgd", lr=1.0, clip=name, clip_norm=threshold, weight_decay=0.5)
    updates = first_step(tx, *(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t) for t in (params, grads)))
    for key, clipped in CLIP_FORMULAS[name](grads, params, threshold).items():
        decay = 0.5 * params[key] if key != "bias" else 0
        np.testing.assert_allclose(updates[key], -(clipped + decay), rtol=1e-4, atol=1e-6)


# Rules, the rate.


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_frozen_parameters_keep_every_bit(name):
    params = {
        "head": {"kernel": jnp.asarray(START, jnp.float32)},
        "stem": {"kernel": jnp.asarray(START.T, jnp.float32)},
    }
    extra = LBFGS if name == "lbfgs" else dict(weight_decay=0.1)
    tx = constant_tx(name, rules=("stem/.*: frozen", "rest:"), **extra)
    state, before = tx.init(params), params

    def value_fn(params):
        return sum(jnp.sum(leaf**2 + leaf) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = dict(value=value, grad=grad, value_fn=value_fn, grad_fn=jax.grad(value_fn))
        updates, state = tx.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    for judged in (params, evaluated_params(state, params)):
        np.testing.assert_array_equal(judged["stem"]["kernel"], before["stem"]["kernel"])
    assert (params["head"]["kernel"] != before["head"]["kernel"]).any()


def test_frozen_parameters_do_not_count_in_the_global_norm():
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    tx = constant_tx("sgd", lr=1.0, clip_norm=1.0, rules=("b: frozen", "rest:"))
    updates = first_step(tx, params, {"a": jnp.full((1, 1), 0.5), "b": jnp.full((1, 1), 100.0)})
    assert updates["a"] == -0.5


def test_rules_scale_rate_and_decay():
    params = {key: jnp.ones((2, 2)) for key in ("a", "b", "c")}
    tx = constant_tx("sgd", lr=1.0, weight_decay=0.5, rules=("a: lr=0.1", "b: lr=2, decay=3", "rest: decay=0"))
    updates = first_step(tx, params, params)
    expected = {"a": 0.1 * 1.5, "b": 2 * (1 + 1.5), "c": 1.0}
    for key, value in expected.items():
        np.testing.assert_allclose(updates[key], -value, rtol=1e-6)


def test_a_rule_that_ends_early_has_the_schedule_of_a_shorter_run_and_then_nothing():
    schedule = make_schedule("cosine", lr=0.5, warmup_steps=2, total_steps=8)
    rules = ("a: lr=2, until_steps=4", "rest:")
    tx = make_tx("sgd", schedule=schedule, clip_norm=0.0, weight_decay=0.0, rules=rules, total_steps=8)
    params = {key: jnp.zeros((1, 1)) for key in "ab"}
    state, found = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(optax.tree.ones_like(params), state, params)
        found.append([-updates[key].item() for key in "ab"])
    whole = np.array([schedule(step) for step in range(8)])
    shorter = np.append(2 * whole[::2], np.zeros(4))
    np.testing.assert_allclose(found, np.stack([shorter, whole], axis=1), rtol=1e-5)
    # At a constant rate too: frozen from there on.
    tx = make_tx("sgd", schedule=lambda _: 0.5, clip_norm=0.0, weight_decay=0.0, rules=rules, total_steps=8)
    state, found = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(optax.tree.ones_like(params), state, params)
        found.append(-updates["a"].item())
    assert found == [1.0] * 4 + [0.0] * 4


def test_a_rule_that_ends_early_needs_a_schedule_that_is_known_before():
    kwargs = dict(clip_norm=0.0, weight_decay=0.0, rules=("rest: until_steps=4",))
    plateau = make_schedule(
        "plateau", lr=1.0, warmup_steps=0, total_steps=10, factor=0.5, patience=1, rtol=1e-4, window_steps=1
    )
    with pytest.raises(ConfigError, match="known course"):
        make_tx("sgd", schedule=plateau, total_steps=10, **kwargs)


def test_rules_that_do_not_fit_are_refused_by_init():
    with pytest.raises(ConfigError, match="no rule matches b"):
        constant_tx("sgd", rules=("a: lr=0.1",)).init({"a": jnp.ones(1), "b": jnp.ones(1)})


@pytest.mark.parametrize("name", ["lookahead", "sam", "schedule_free", "sgd"])
def test_the_state_tells_the_rate_that_was_applied(name):
    schedule = make_schedule("linear", lr=0.5, warmup_steps=2, total_steps=6)
    tx = make_tx(name, schedule=schedule, clip_norm=1.0, weight_decay=0.0, **FORMULAS[name][1])
    params, grads = {"a": jnp.zeros((1, 1))}, {"a": jnp.ones((1, 1))}
    state = tx.init(params)
    update = jax.jit(lambda state: tx.update(grads, state, params, grad_fn=lambda _: grads))
    for step in range(4):
        updates, state = update(state)
        np.testing.assert_allclose(applied_lr(state), schedule(step), rtol=1e-6)
        if name == "sgd":
            np.testing.assert_allclose(updates["a"], -schedule(step), rtol=1e-6)


def test_the_plateau_drives_the_rate_through_the_chain():
    schedule = make_schedule(
        "plateau", lr=1.0, warmup_steps=0, total_steps=10, factor=0.5, patience=0, rtol=1e-4, window_steps=1
    )
    tx = make_tx("sgd", schedule=schedule, clip_norm=0.0, weight_decay=0.0)
    params = {"a": jnp.zeros((1, 1))}
    state, rates = tx.init(params), []
    for value in (3.0, 2.0, 2.0, 1.0):
        updates, state = tx.update({"a": jnp.ones((1, 1))}, state, params, value=jnp.float32(value))
        assert updates["a"] == -applied_lr(state)
        rates.append(applied_lr(state).item())
    assert rates == [1.0, 1.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match="cannot follow the schedule 'plateau'"):
        make_tx("schedule_free", schedule=schedule, clip_norm=0.0, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_state_keeps_its_structure_shapes_and_dtypes(name):
    # So that the step compiles once and a checkpoint of any step restores into the first.
    tx = constant_tx(name, clip_norm=float(name != "lbfgs"), **(LBFGS if name == "lbfgs" else {}))
    params = {"head": {"kernel": jnp.ones(SHAPE), "bias": jnp.ones(2)}}

    def value_fn(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    def after_a_step(state):
        extra = dict(value=value_fn(params), grad=params, value_fn=value_fn, grad_fn=jax.grad(value_fn))
        return tx.update(params, state, params, **extra)[1]

    before = jax.eval_shape(tx.init, params)
    assert jax.eval_shape(after_a_step, before) == before


def test_links_carry_the_names_of_their_roles():
    tx = constant_tx("nesterov", clip_norm=1.0)
    assert list(tx.init({"a": jnp.zeros((1, 1))})) == ["clip", "weight_decay", "momentum", "learning_rate"]
    tx = constant_tx("sam", clip_norm=1.0, rules=("a: frozen", "b: lr=2"))
    expected = "frozen_gradients sam frozen clip weight_decay momentum rules learning_rate frozen_updates"
    assert list(tx.init({"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))})) == expected.split()


def test_every_optimizer_has_a_default_rate():
    assert DEFAULT_LR.keys() == OPTIMIZERS.keys() and min(DEFAULT_LR.values()) > 0
