"""Each loss against its formula, at the values that the lecture uses as checks."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.step.losses import LOSSES, make_loss

WEIGHTS = (0.5, 2.0, 1.0, 3.0)


def smoothed(labels, smoothing, num_classes):
    return np.eye(num_classes)[labels] * (1 - smoothing) + smoothing / num_classes


def softmax(logits, labels, smoothing):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(smoothed(labels, smoothing, logits.shape[1]) * log_p).sum(axis=1)


def weighted_softmax(logits, labels, smoothing):
    return np.array(WEIGHTS)[labels] * softmax(logits, labels, smoothing)


def sigmoid(logits, labels, smoothing):
    p, target = 1 / (1 + np.exp(-logits)), smoothed(labels, smoothing, logits.shape[1])
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(axis=1)


def svm(logits, labels, smoothing):
    def one(f, y):
        return sum(max(0, f[j] - f[y] + 1) for j in range(len(f)) if j != y)

    return [one(f, y) for f, y in zip(logits, labels, strict=True)]


FORMULAS = {
    "sigmoid": (sigmoid, {}),
    "softmax": (softmax, {}),
    "svm": (svm, {}),
    "weighted_softmax": (weighted_softmax, dict(class_weights=WEIGHTS)),
}
SMOOTH = [name for name in sorted(LOSSES) if "label_smoothing" in inspect.signature(LOSSES[name]).parameters]


def examples():
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(6, 4)), rng.integers(0, 4, 6)


@pytest.mark.parametrize(
    ("name", "smoothing"), [(name, 0.0) for name in sorted(LOSSES)] + [(name, 0.2) for name in SMOOTH]
)
def test_loss_is_the_formula(name, smoothing):
    (logits, labels), (formula, parameters) = examples(), FORMULAS[name]
    loss = make_loss(name, label_smoothing=smoothing, **parameters)
    found = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert found.shape == (6,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, formula(logits, labels, smoothing), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "smoothing"), [(name, 0.0) for name in sorted(LOSSES)] + [(name, 0.2) for name in SMOOTH]
)
def test_of_soft_targets_it_is_the_weighted_mean_over_labels(name, smoothing):
    logits, labels = (jnp.asarray(array) for array in examples())
    loss = make_loss(name, label_smoothing=smoothing, **FORMULAS[name][1])
    hard, other = jax.nn.one_hot(labels, 4), jax.nn.one_hot((labels + 1) % 4, 4)
    np.testing.assert_allclose(loss(logits, hard), loss(logits, labels), rtol=1e-5)
    mixed = 0.7 * loss(logits, labels) + 0.3 * loss(logits, (labels + 1) % 4)
    np.testing.assert_allclose(loss(logits, 0.7 * hard + 0.3 * other), mixed, rtol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("softmax", np.log(10)), ("svm", 9), ("sigmoid", 10 * np.log(2))])
def test_the_loss_of_zero_logits_is_the_lecture_s(name, value):
    loss = make_loss(name, label_smoothing=0.0)
    logits, labels = jnp.zeros((2, 10)), jnp.array([3, 7])
    np.testing.assert_allclose(loss(logits, labels), value, rtol=1e-6)
    np.testing.assert_allclose(loss(logits, jax.nn.one_hot(labels, 10)), value, rtol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weight_of_a_rare_class_does_not_draw_the_others_to_it(mixed):
    """At 1:50, with weights that balance the classes, the best logits of an example still name its label."""
    loss = make_loss("weighted_softmax", label_smoothing=0.1, class_weights=(51 / 100, 51 / 2))
    labels = jnp.array([[0.9, 0.1], [0.1, 0.9]]) if mixed else jnp.array([0, 1])
    target = np.array([[0.9, 0.1], [0.1, 0.9]]) if mixed else np.eye(2)
    probabilities = target * (51 / 100, 51 / 2)
    probabilities = 0.9 * probabilities / probabilities.sum(axis=1, keepdims=True) + 0.05
    gradient = jax.grad(lambda logits: loss(logits, labels).sum())(jnp.log(probabilities))
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert mixed or (probabilities.argmax(axis=1) == [0, 1]).all()


def test_the_svm_s_gradient_pushes_the_label_by_the_number_of_classes_in_its_way():
    logits = jnp.array([[2.0, 1.5, -5.0, 1.2]])
    gradient = jax.grad(lambda f: make_loss("svm", label_smoothing=0.0)(f, jnp.array([0])).sum())(logits)
    np.testing.assert_allclose(gradient, [[-2, 1, 0, 1]], atol=1e-6)


def test_the_svm_is_not_optax_s():
    assert optax.losses.multiclass_hinge_loss(jnp.zeros((1, 10)), jnp.array([3])) == 1


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_large_logits_stay_finite(name):
    logits = jnp.array([[1e4, -1e4, 0.0, 5.0]])
    loss = make_loss(name, label_smoothing=0.0, **FORMULAS[name][1])
    value, gradient = jax.value_and_grad(lambda f: loss(f, jnp.array([1])).sum())(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="knows no label smoothing"):
        make_loss("svm", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="has 2 numbers; give 4"):
        make_loss("weighted_softmax", label_smoothing=0.0, class_weights=(1, 2))(jnp.zeros((1, 4)), jnp.array([0]))
    with pytest.raises(ConfigError, match="are all 0"):
        make_loss("weighted_softmax", label_smoothing=0.0, class_weights=(0, 0))(jnp.zeros((1, 2)), jnp.array([0]))
