"""Each loss against its formula, at the values that the lecture uses as checks."""

import jax.numpy as jnp
import numpy as np
import pytest

from trainer.errors import ConfigError
from trainer.losses import LOSSES, make_loss


def softmax(logits, labels, smoothing):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * log_p).sum(axis=1)


FORMULAS = {"softmax": softmax}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_is_the_formula(name, smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    found = make_loss(name, label_smoothing=smoothing)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert found.shape == (6,)
    np.testing.assert_allclose(found, FORMULAS[name](logits, labels, smoothing), rtol=1e-5)


def test_softmax_of_zero_logits_is_log_c():
    loss = make_loss("softmax", label_smoothing=0.0)(jnp.zeros((2, 10)), jnp.array([3, 7]))
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        make_loss("softmx", label_smoothing=0.0)
