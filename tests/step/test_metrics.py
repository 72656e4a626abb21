"""Sums that add up exactly, and the search for the step that went wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.step import metrics


def sums(losses, correct, mask):
    logits = jnp.stack([jnp.asarray(correct, jnp.float32), 1 - jnp.asarray(correct, jnp.float32)], axis=1)
    labels = jnp.zeros(len(losses), jnp.int32)
    return metrics.masked_sums(
        losses=jnp.asarray(losses, jnp.float32), logits=logits, labels=labels, mask=jnp.asarray(mask, jnp.float32)
    )


def test_means_over_batches_of_any_size_are_means_over_examples():
    parts = [sums([1.0, 2.0, 3.0], [1, 0, 1], [1, 1, 1]), sums([5.0], [0], [1])]
    assert metrics.means(parts) == {"loss": 11 / 4, "accuracy": 0.5, "examples": 4}


@pytest.mark.parametrize("padding", [7.0, np.nan, np.inf])
def test_padding_counts_nowhere(padding):
    assert metrics.means([sums([1.0, padding], [0, 1], [1, 0])]) == {"loss": 1.0, "accuracy": 0.0, "examples": 1}


def test_summary_averages_norms_over_steps_and_keeps_the_last_rate():
    steps = [
        {"loss": 4.0, "correct": 1.0, "examples": 2.0, "lr": 0.1, "grad_norm": 1.0, "update_ratio": 0.2},
        {"loss": 2.0, "correct": 2.0, "examples": 2.0, "lr": 0.3, "grad_norm": 3.0, "update_ratio": 0.4},
    ]
    found = metrics.summarize(steps)
    expected = {"train_loss": 1.5, "train_accuracy": 0.75, "lr": 0.3, "grad_norm": 2.0, "update_ratio": 0.3}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("key", ["loss", "grad_norm", "update_ratio"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_step_is_finite_where_its_loss_gradient_and_update_are(key, value):
    step = {"loss": 1.0, "grad_norm": 1.0, "update_ratio": 1.0}
    assert metrics.is_finite(step)
    assert not metrics.is_finite({**step, key: value})
