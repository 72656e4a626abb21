import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.data.augment.mixing import MIXING, make_mix

BATCH, HEIGHT, WIDTH, CLASSES = 8, 12, 16, 5


@functools.cache
def images():
    return np.random.default_rng(0).random((BATCH, HEIGHT, WIDTH, 3), np.float32)


@functools.cache
def levels():
    """Each image is its own index, so that a pixel says where it came from."""
    return np.broadcast_to(np.arange(BATCH, dtype=np.float32)[:, None, None, None], (BATCH, HEIGHT, WIDTH, 1))


@functools.cache
def places():
    """One-hot by index, so that a row of targets says who took part."""
    return np.eye(BATCH, dtype=np.float32)


def arguments(name):
    return {} if name == "none" else {"alpha": 1.0}


@functools.cache
def jitted(name):
    return jax.jit(MIXING[name], static_argnames=sorted(arguments(name)))


def mix(name, seed=0, images=images, targets=places, **given):
    return [np.asarray(out) for out in jitted(name)(jax.random.key(seed), images(), targets(), **given)]


@functools.cache
def many(name, alpha):
    """Results for 500 keys: images [500, B, H, W, 1] of `levels`, targets [500, B, B] of `places`."""
    keys = jax.random.split(jax.random.key(1), 500)
    one = jax.vmap(lambda key: MIXING[name](key, levels(), places(), alpha=alpha))
    return [np.asarray(out) for out in jax.jit(one)(keys)]


@pytest.mark.parametrize("name", sorted(MIXING))
def test_shapes_and_dtypes_are_kept_and_targets_stay_distributions(name):
    smooth = np.random.default_rng(1).dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
    for seed in range(5):
        mixed, targets = mix(name, seed, targets=lambda: smooth, **arguments(name))
        assert mixed.shape == images().shape and mixed.dtype == np.float32 and targets.dtype == np.float32
        assert 0 <= mixed.min() and mixed.max() <= 1
        np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(MIXING))
def test_same_key_same_mixture_and_other_key_another(name):
    first, again, other = (mix(name, seed, **arguments(name))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (name == "none")


def test_none_changes_nothing():
    mixed, targets = mix("none")
    np.testing.assert_array_equal(mixed, images())
    np.testing.assert_array_equal(targets, places())


@pytest.mark.parametrize("seed", range(4))
def test_mixup_is_the_formula_for_one_lambda_and_one_permutation(seed):
    mixed, targets = mix("mixup", seed, alpha=1.0)
    own = np.diag(targets)
    partner = np.where(own == 1, np.arange(BATCH), np.argmax(targets - np.diag(own), axis=1))  # some have themselves
    assert sorted(partner) == list(range(BATCH))
    lambdas = own[partner != np.arange(BATCH)]
    np.testing.assert_allclose(lambdas, lambdas[0], atol=1e-6)
    np.testing.assert_allclose(mixed, lambdas[0] * images() + (1 - lambdas[0]) * images()[partner], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_lambda_is_beta_distributed(alpha):
    _, targets = many("mixup", alpha)
    own = targets[:, np.arange(BATCH), np.arange(BATCH)].min(axis=1)  # whoever has another partner
    assert abs(own.mean() - 0.5) < 0.06
    assert abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_pastes_one_box_of_the_partner_and_weighs_by_its_area(seed):
    mixed, targets = mix("cutmix", seed, images=levels, alpha=1.0)
    pasted = mixed[..., 0] != np.arange(BATCH)[:, None, None]
    moved = pasted.any(axis=(1, 2))
    assert moved.any()
    box = pasted[moved][0]
    assert (pasted[moved] == box).all()
    np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0)[None, :])
    partner = np.array([int(np.max(mixed[i][box])) for i in range(BATCH)])
    assert (mixed[:, box] == partner[:, None, None]).all() and sorted(partner) == list(range(BATCH))
    expected = (1 - box.mean()) * places() + box.mean() * places()[partner]
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_cutmixs_boxes_have_the_images_shape_and_the_drawn_area():
    mixed, _ = many("cutmix", 1.0)
    pasted = (mixed[..., 0] != np.arange(BATCH)[:, None, None]).any(axis=1)
    heights, widths = pasted.any(axis=2).sum(axis=1), pasted.any(axis=1).sum(axis=1)
    # Where no border cut the box off: sides from one lambda, rounded down; 1 - lambda is uniform.
    whole = (
        (pasted[:, 0].sum(axis=1) == 0)
        & (pasted[:, -1].sum(axis=1) == 0)
        & (pasted[:, :, 0].sum(axis=1) == 0)
        & (pasted[:, :, -1].sum(axis=1) == 0)
    )
    assert whole.sum() > 50
    assert (np.abs(heights / HEIGHT - widths / WIDTH)[whole] < 1 / HEIGHT).all()
    assert pasted.mean(axis=(1, 2)).max() > 0.7 and pasted.mean(axis=0).min() > 0.1  # every pixel is reached
    assert 0.28 < pasted.mean() < 0.42


def test_no_mixing_keeps_labels_and_mixing_makes_targets_of_them():
    images, labels = jnp.ones((4, 2, 2, 1)), jnp.array([0, 2, 1, 2])
    key = jax.random.key(0)
    assert make_mix("none", num_classes=3)(key, images, labels)[1] is labels
    for name in ("cutmix", "mixup"):
        _, targets = make_mix(name, num_classes=3, alpha=1.0)(key, images, labels)
        assert targets.shape == (4, 3)
        np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-6)
