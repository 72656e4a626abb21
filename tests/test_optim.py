"""Each optimiser against its formula in NumPy, and what decay and clipping act on."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trainer.errors import ConfigError
from trainer.optim import OPTIMIZERS, applied_lr, decay_mask, make_tx

LR, DECAY = 0.1, 0.01


def sgd(x, grads):
    for g in grads:
        x = x - LR * (g + DECAY * x)
    return x


def momentum(x, grads, rho=0.9):
    v = 0
    for g in grads:
        v = rho * v + (g + DECAY * x)
        x = x - LR * v
    return x


def nesterov(x, grads, rho=0.9):
    v = 0
    for g in grads:
        g = g + DECAY * x
        v = rho * v + g
        x = x - LR * (g + rho * v)
    return x


def adamw(x, grads, b1=0.9, b2=0.999, eps=1e-8):
    m = s = 0
    for t, g in enumerate(grads, start=1):
        m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
        x = x - LR * (m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps) + DECAY * x)
    return x


FORMULAS = {
    "adamw": (adamw, dict(b1=0.9, b2=0.999, eps=1e-8)),
    "momentum": (momentum, dict(momentum=0.9)),
    "nesterov": (nesterov, dict(momentum=0.9)),
    "sgd": (sgd, {}),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_update_is_the_formula(name):
    formula, parameters = FORMULAS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2))
    grads = rng.normal(size=(6, 3, 2))
    tx = make_tx(name, schedule=optax.constant_schedule(LR), clip_norm=0.0, weight_decay=DECAY, **parameters)
    params = {"kernel": jnp.asarray(x, jnp.float32)}
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    # In float32 the first 1 - b2^t of Adam are known to about 1e-4.
    np.testing.assert_allclose(params["kernel"], formula(x, grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_decay_spares_biases_and_norm_scales(name):
    _, parameters = FORMULAS[name]
    params = {"conv": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    tx = make_tx(name, schedule=optax.constant_schedule(LR), clip_norm=0.0, weight_decay=0.5, **parameters)
    zero = optax.tree.zeros_like(params)
    updates, _ = tx.update(zero, tx.init(params), params)
    assert (updates["conv"]["kernel"] < 0).all()
    assert (updates["norm"]["scale"] == 0).all() and (updates["norm"]["bias"] == 0).all()
    assert decay_mask(params) == {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}}


def test_clipping_bounds_the_global_norm_before_decay():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(3, 4.0)}
    tx = make_tx("sgd", schedule=optax.constant_schedule(1.0), clip_norm=2.0, weight_decay=0.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates["a"][0, 0] / updates["b"][0], 0.75, rtol=1e-6)


def test_the_state_tells_the_rate_that_was_applied():
    tx = make_tx("sgd", schedule=lambda count: 0.5 / (count + 1), clip_norm=0.0, weight_decay=0.0)
    params = {"a": jnp.zeros((1, 1))}
    state = tx.init(params)
    for step in range(3):
        updates, state = tx.update({"a": jnp.ones((1, 1))}, state, params)
        np.testing.assert_allclose(applied_lr(state), 0.5 / (step + 1), rtol=1e-6)
        np.testing.assert_allclose(updates["a"], -0.5 / (step + 1), rtol=1e-6)


def test_links_carry_the_names_of_their_roles():
    tx = make_tx("nesterov", schedule=lambda _: 0.1, clip_norm=1.0, weight_decay=0.0, momentum=0.9)
    assert list(tx.init({"a": jnp.zeros((1, 1))})) == ["clip", "weight_decay", "momentum", "learning_rate"]


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        make_tx("adamww", schedule=lambda _: 0.1, clip_norm=0.0)
