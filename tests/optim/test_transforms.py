"""The links that Optax does not have, or has with another convention."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.optimizer_formulas import SHAPE, START, orthogonalized

from linseed.trainer.optim import transforms
from linseed.trainer.optim.chain import applied_lr, evaluated_params, make_tx


def test_muon_takes_a_conv_kernel_as_a_matrix_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "head": {"kernel": (4, 5)}}
    grads = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: type(s) is tuple
    )
    tx, params = transforms.scale_by_muon(0.95, 0.9, 0.999, 1e-8, "head/.*"), optax.tree.ones_like(grads)
    found, _ = tx.update(grads, tx.init(params), params)
    matrix = np.asarray(found["conv"]["kernel"]).reshape(18, 4)
    expected = 0.2 * np.sqrt(18) * orthogonalized(np.asarray(grads["conv"]["kernel"], np.float64).reshape(18, 4).T).T
    np.testing.assert_allclose(matrix, expected, rtol=1e-3, atol=1e-5)
    singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(18))
    assert (singular > 0.5).all() and (singular < 1.5).all()
    for leaf, grad in (
        (found["conv"]["bias"], grads["conv"]["bias"]),
        (found["head"]["kernel"], grads["head"]["kernel"]),
    ):
        np.testing.assert_allclose(leaf, np.sign(grad), rtol=1e-4)  # Adam's first step


MUON = dict(momentum=0.6, newton_schulz_steps=3, eps=1e-10, nesterov_momentum=0.85, nesterov_params="head/.*")


def test_muon_with_nesterov_makes_kernels_orthogonal_and_hands_the_rest_to_sgd():
    rng = np.random.default_rng(0)
    shapes = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "head": {"kernel": (4, 5)}}
    first, second = (
        jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: type(s) is tuple)
        for _ in range(2)
    )
    tx, params = transforms.scale_by_muon_nesterov(**MUON), optax.tree.ones_like(first)
    _, state = tx.update(first, tx.init(params), params)
    found, _ = tx.update(second, state, params)
    # A sum, not a mean: v = rho v + g, and g + rho v is handed on, of unlike momentum for the two parts.
    ahead = second["conv"]["kernel"] + 0.6 * (0.6 * first["conv"]["kernel"] + second["conv"]["kernel"])
    u, _, v = np.linalg.svd(np.asarray(ahead, np.float64).reshape(18, 4), full_matrices=False)
    share = u.T @ np.asarray(found["conv"]["kernel"]).reshape(18, 4) @ v.T
    np.testing.assert_allclose(share, np.diag(np.diag(share)), atol=1e-5)  # of the gradient's own directions
    assert (np.diag(share) > 0.6).all() and (np.diag(share) < 1.25).all()
    for one, two, out in zip(
        *(jax.tree.leaves([t["conv"]["bias"], t["head"]]) for t in (first, second, found)), strict=True
    ):
        np.testing.assert_allclose(out, two + 0.85 * (0.85 * one + two), rtol=1e-5)


def test_muon_with_nesterov_steps_from_kernels_whose_outputs_have_norm_one_on_average():
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)))}, "head": {"kernel": jnp.ones((4, 5))}}
    updates = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)
    tx = transforms.normalize_kernels("head/.*")
    after = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    kernel = np.asarray(after["conv"]["kernel"]) - 0.1
    assert np.mean(np.sum(kernel**2, axis=(0, 1, 2))) == pytest.approx(1, rel=1e-5)
    assert np.corrcoef(kernel.ravel(), np.ravel(params["conv"]["kernel"]))[0, 1] == pytest.approx(1)
    np.testing.assert_allclose(after["head"]["kernel"], 1.1, rtol=1e-6)


# L-BFGS: a line search and a curvature model, on a bowl of condition number 100.


def bowl(params):
    x = params["kernel"]
    return 0.5 * jnp.sum(jnp.array([[1.0, 5.0], [20.0, 50.0], [100.0, 10.0]]) * x**2) + jnp.sum(x) + jnp.prod(x) ** 2


def lbfgs_path(steps, lr=1.0):
    """(params, gradient, update, applied rate) of each step."""
    schedule = optax.constant_schedule(lr)
    tx = make_tx("lbfgs", schedule=schedule, clip_norm=0.0, memory_size=10, max_linesearch_steps=20)
    params = {"kernel": jnp.asarray(START, jnp.float32)}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(bowl)(params)
        # It is handed all that any chain may need, and ignores the rest.
        extra = dict(value=value, grad=grad, value_fn=bowl, grad_fn=jax.grad(bowl))
        updates, state = tx.update(grad, state, params, **extra)
        return grad, updates, state

    for _ in range(steps):
        grad, updates, state = step(params, state)
        yield tuple(
            np.asarray(v, np.float64).ravel() for v in (params["kernel"], grad["kernel"], updates["kernel"])
        ) + (float(applied_lr(state)),)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_lbfgs_is_the_bfgs_recursion_times_the_applied_rate(lr):
    pairs = []
    previous = None
    for x, g, update, rate in lbfgs_path(5, lr):
        if previous is not None:
            pairs.append((x - previous[0], g - previous[1]))
        previous = x, g
        size = len(x)
        inverse = np.eye(size) * min(1, 1 / np.linalg.norm(g))
        if pairs:
            s, y = pairs[-1]
            inverse = np.eye(size) * (s @ y) / (y @ y)
        for s, y in pairs:
            left = np.eye(size) - np.outer(s, y) / (s @ y)
            inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
        expected = -rate * inverse @ g
        assert np.linalg.norm(update - expected) < 1e-2 * np.linalg.norm(expected)


def test_lbfgs_finds_the_minimum_in_a_few_steps_and_never_climbs():
    path = list(lbfgs_path(25))
    values = [float(bowl({"kernel": x.reshape(SHAPE)})) for x, *_ in path]
    # Near the minimum the line search accepts steps within float32's noise of the value.
    assert all(after <= before + 1e-5 for before, after in zip(values, values[1:], strict=False))
    assert np.linalg.norm(path[-1][1]) < 1e-3


def test_the_average_of_schedule_free_weighs_each_step_by_its_applied_rate():
    rates = np.array([0.0, 0.1, 0.2, 0.3])
    tx = make_tx(
        "schedule_free",
        schedule=lambda t: jnp.asarray(rates)[t],
        clip_norm=0.0,
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
        eps=0.1,
    )
    params = {"a": jnp.full((1, 1), 2.0)}
    state, z = tx.init(params), []
    for _ in rates:
        updates, state = tx.update({"a": jnp.ones((1, 1))}, state, params)
        params = optax.apply_updates(params, updates)
        z.append(state["schedule_free"].z["a"].item())
    weights = np.maximum.accumulate(rates) ** 2
    np.testing.assert_allclose(evaluated_params(state, params)["a"], weights @ z / weights.sum(), rtol=1e-4)


def test_lookahead_is_judged_by_its_slow_parameters():
    schedule = optax.constant_schedule(1.0)
    parameters = dict(momentum=0.0, sync_steps=2, slow_rate=0.5, weight_decay=0.0)
    tx = make_tx("lookahead", schedule=schedule, clip_norm=0.0, **parameters)
    params = {"a": jnp.zeros((1, 1))}
    state = tx.init(params)
    seen = []
    for _ in range(3):
        updates, state = tx.update({"a": jnp.ones((1, 1))}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append((params["a"].item(), evaluated_params(state, params)["a"].item()))
    assert seen == [(-1, 0), (-1, -1), (-2, -1)]
