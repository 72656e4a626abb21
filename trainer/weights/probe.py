"""A linear probe: logistic regression on features, for many weight decays at once.

The usual measure of features, and the start of a fine-tuning that does not spoil them (Kumar et al. 2022, "Fine-tuning
can distort pretrained features and underperform out-of-distribution", LP-FT).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.trainer.weights.features import Features

# Of the mean cross-entropy, on features of unit variance. Kornblith et al. 2019, "Do better ImageNet models transfer
# better?", section 3: L-BFGS, and a grid of decays that validation chooses from.
DECAYS = tuple(float(f"{10.0**power:.3g}") for power in np.arange(-5, 2.25, 0.5))

_MOST_STEPS = 500
_TOLERANCE = 1e-4  # of the gradient's largest number
_MOST_LOGITS = 2**28  # at once, in numbers


class Probe(NamedTuple):
    """The best head. kernel: float32 [F, C]. bias: float32 [C]. accuracy, loss: on validation."""

    kernel: np.ndarray
    bias: np.ndarray
    decay: float
    accuracy: float
    loss: float


def fit(train: Features, val: Features, *, classes: int) -> Probe:
    """The head whose decay is best on `val`, by accuracy and then by loss; convex, so that no rate matters."""
    mean, std = train.values.mean(axis=0), np.maximum(train.values.std(axis=0), 1e-6)
    at_once = max(1, _MOST_LOGITS // (len(train.labels) * classes))
    kernels, biases = jax.device_get(
        _solve((train.values - mean) / std, train.labels, np.float32(DECAYS), classes, min(at_once, len(DECAYS)))
    )
    kernels = kernels / std[:, None]  # for features as they are
    biases = biases - mean @ kernels
    found = [_judged(kernel, bias, val) for kernel, bias in zip(kernels, biases, strict=True)]
    best = max(range(len(DECAYS)), key=lambda i: (found[i][0], -found[i][1]))
    return Probe(kernels[best], biases[best], DECAYS[best], *found[best])


def _judged(kernel, bias, val):
    logits = val.values @ kernel + bias
    losses = jax.nn.logsumexp(logits, axis=1) - np.take_along_axis(logits, val.labels[:, None], axis=1)[:, 0]
    return float((logits.argmax(axis=1) == val.labels).mean()), float(losses.mean())


def _solve(values, labels, decays, classes, at_once):
    """(kernels [D, F, C], biases [D, C]) of the regressions on values [N, F] with each of `decays`."""
    values, labels = jnp.asarray(values), jnp.asarray(labels)
    solver = optax.lbfgs()

    def solve(decay):
        def objective(head):
            kernel, bias = head
            losses = optax.softmax_cross_entropy_with_integer_labels(values @ kernel + bias, labels)
            return losses.mean() + decay / 2 * jnp.sum(kernel**2)

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry):
            head, state, _, count = carry
            value, grad = value_and_grad(head, state=state)
            updates, state = solver.update(grad, state, head, value=value, grad=grad, value_fn=objective)
            return optax.apply_updates(head, updates), state, optax.tree.norm(grad, ord=jnp.inf), count + 1

        head = (jnp.zeros((values.shape[1], classes)), jnp.zeros(classes))
        start = (head, solver.init(head), jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(lambda carry: (carry[2] > _TOLERANCE) & (carry[3] < _MOST_STEPS), step, start)[0]

    return jax.jit(lambda decays: jax.lax.map(solve, decays, batch_size=at_once))(decays)
