"""The scores of an evaluation: exact, of every class alike where they say so, and with intervals that hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.step import scores


def sums(labels, answers, *, classes, mask=None, losses=None):
    mask = np.ones(len(labels)) if mask is None else mask
    return scores.class_sums(
        losses=jnp.asarray(np.ones(len(labels)) if losses is None else losses, jnp.float32),
        logits=jnp.eye(classes)[jnp.asarray(answers)],
        labels=jnp.asarray(labels),
        mask=jnp.asarray(mask, jnp.float32),
    )


def host(*parts):
    return [{key: np.asarray(value) for key, value in part.items()} for part in parts]


def test_one_class_at_98_percent_is_told_by_the_scores_beside_its_accuracy():
    labels = np.repeat([0, 1], [100, 2])
    found = scores.scores(host(sums(labels, np.zeros(102, int), classes=2)))
    assert found["accuracy"] == found["majority_share"] == 100 / 102
    assert found["balanced_accuracy"] == 0.5 and found["examples"] == 102


def test_scores_are_those_of_all_examples_however_they_are_cut_and_padded():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 5, 97), rng.integers(0, 5, 97)
    labels[labels == 3] = 1  # a class without an example has no part in the balanced accuracy
    recalls = [np.mean(answers[labels == label] == label) for label in (0, 1, 2, 4)]
    cut = [slice(0, 40), slice(40, 41), slice(41, 97)]
    parts = [sums(labels[part], answers[part], classes=5) for part in cut]
    parts.append(sums([0, 3], [0, 3], classes=5, mask=np.zeros(2), losses=[np.nan, np.inf]))
    found = scores.scores(host(*parts))
    assert found["accuracy"] == np.mean(labels == answers)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-15)
    assert found["majority_share"] == np.bincount(labels).max() / 97
    assert (found["examples"], found["loss"]) == (97, 1.0)
    whole = scores.scores(host(sums(labels, answers, classes=5)))
    assert found == whole


def test_counts_are_exact_where_float32_is_not():
    half = {"loss": np.float32(0), "correct": np.array([2**24, 1]), "examples": np.array([2**24 + 1, 1])}
    found = scores.scores([half, half])
    assert found["examples"] == 2**25 + 4 and found["accuracy"] == (2**25 + 2) / (2**25 + 4)


@pytest.mark.parametrize(
    ("correct", "examples", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(correct, examples, low, high):
    np.testing.assert_allclose(scores.wilson(correct, examples), [low, high], atol=5e-5)
    np.testing.assert_allclose(scores.wilson(examples - correct, examples), [1 - high, 1 - low], atol=5e-5)


def test_the_balanced_interval_of_one_class_is_wilsons_and_none_leaves_0_to_1():
    np.testing.assert_allclose(scores.balanced_interval(np.array([81]), np.array([263])), scores.wilson(81, 263))
    for share in (0, 1):
        low, high = scores.balanced_interval(np.array([3, 50]) * share, np.array([3, 50]))
        assert 0 <= low < high <= 1


@pytest.mark.parametrize(("shares", "examples"), [((0.98, 0.3), (500, 12)), ((0.9, 0.7, 0.5), (40, 40, 40))])
def test_the_intervals_hold_the_truth_in_95_of_100_draws(shares, examples):
    rng, held = np.random.default_rng(0), []
    for _ in range(2000):
        correct = rng.binomial(examples, shares)
        low, high = scores.balanced_interval(correct, np.array(examples))
        held.append(low <= np.mean(shares) <= high)
    assert 0.93 < np.mean(held) < 0.98


@pytest.mark.parametrize("monitor", scores.MONITORS)
def test_a_better_score_is_higher(monitor):
    worse, better = ({"accuracy": a, "balanced_accuracy": a, "loss": 1 - a} for a in (0.4, 0.6))
    assert scores.score(better, monitor) > scores.score(worse, monitor)
