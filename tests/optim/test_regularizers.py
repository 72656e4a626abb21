"""Each regulariser against its formula, and what it acts on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linseed.trainer.optim.chain import make_tx
from linseed.trainer.optim.regularizers import REGULARIZERS, make_regularizer
from linseed.trainer.optim.rules import DEFAULT_RULES
from linseed.trainer.step.losses import make_loss

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(2, 2, 1, 3)), "bias": RNG.normal(size=3)},
    "head": {"kernel": RNG.normal(size=(3, 2)), "scale": RNG.normal(size=3)},
}
KERNELS = np.concatenate([PARAMS["conv"]["kernel"].ravel(), PARAMS["head"]["kernel"].ravel()])
FORMULAS = {
    "elastic_net": (lambda w: 0.1 * (0.7 * w**2 + np.abs(w)).sum(), dict(strength=0.1, beta=0.7)),
    "l1": (lambda w: 0.1 * np.abs(w).sum(), dict(strength=0.1)),
    "l2": (lambda w: 0.1 * (w**2).sum(), dict(strength=0.1)),
    "none": (lambda w: 0.0, {}),
}


def jax_params():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_regularizer_is_the_formula_over_the_parameters_that_decay(name):
    formula, parameters = FORMULAS[name]
    found = make_regularizer(name, rules=DEFAULT_RULES, **parameters)(jax_params())
    assert found.shape == () and found.dtype == jnp.float32
    np.testing.assert_allclose(found, formula(KERNELS), rtol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "svm"])
@pytest.mark.parametrize("name", sorted(set(REGULARIZERS) - {"none"}))
def test_it_raises_the_initial_loss_above_the_lecture_s_value(name, loss):
    initial = {"softmax": np.log(10), "svm": 9}[loss]
    plain = make_loss(loss, label_smoothing=0.0)(jnp.zeros((4, 10)), jnp.arange(4)).mean()
    np.testing.assert_allclose(plain, initial, rtol=1e-6)
    assert plain + make_regularizer(name, rules=DEFAULT_RULES, **FORMULAS[name][1])(jax_params()) > initial + 0.1


def test_rules_decide_what_it_acts_on():
    l2 = make_regularizer("l2", rules=("conv/.*: frozen", "rest: decay=2"), strength=1.0)
    expected = 2 * ((PARAMS["head"]["kernel"] ** 2).sum() + (PARAMS["head"]["scale"] ** 2).sum())
    np.testing.assert_allclose(l2(jax_params()), expected, rtol=1e-5)


def test_l2_is_twice_its_strength_of_weight_decay():
    l2 = make_regularizer("l2", rules=DEFAULT_RULES, strength=0.05)
    params = jax_params()
    tx = make_tx("sgd", schedule=lambda _: 1.0, clip_norm=0.0, weight_decay=0.1)
    updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    for decay, gradient in zip(jax.tree.leaves(updates), jax.tree.leaves(jax.grad(l2)(params)), strict=True):
        np.testing.assert_allclose(-decay, gradient, rtol=1e-6)
