"""Views: the logits averaged by hand, from NumPy's shifts and mirror images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.step.eval_step import make_logits
from linseed.trainer.step.tta import VIEWS

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 2), dtype=np.uint8)
WEIGHTS = {
    "params": {"w": np.random.default_rng(1).standard_normal((5, 7, 2, 4)).astype(np.float32)},
    "model_state": {},
}


class Squared:
    """Logits that are not linear in the image, so that averaging images would show."""

    def apply(self, variables, images, *, train):
        assert not train
        return jnp.einsum("bhwc,hwck->bk", images, variables["params"]["w"]) ** 2


def by_hand(images):
    return np.einsum("bhwc,hwck->bk", np.asarray(images, np.float64) / 255 - 0.5, WEIGHTS["params"]["w"]) ** 2


def mirrored(images):
    return (by_hand(images) + by_hand(images[:, :, ::-1])) / 2


def shifted(images, by):
    """Every pixel read `by` places on, down and to the right; what lies outside is the pixel as far inside."""

    def fold(places, size):
        places = np.abs(places)
        return np.where(places >= size, 2 * (size - 1) - places, places)

    rows, columns = fold(np.arange(5) + by, 5), fold(np.arange(7) + by, 7)
    return images[:, rows][:, :, columns]


MEANS = {
    "mirror": mirrored,
    "mirror_translate": lambda x: mirrored(x) / 2 + (mirrored(shifted(x, 1)) + mirrored(shifted(x, -1))) / 4,
    "none": by_hand,
}


def test_every_entry_has_its_mean_here():
    assert set(MEANS) == set(VIEWS)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_logits_are_the_mean_over_the_views(name):
    logits = make_logits(model=Squared(), normalize=lambda images: images - 0.5, views=VIEWS[name])
    found = jax.jit(logits)(WEIGHTS, IMAGES)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, MEANS[name](IMAGES), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_the_shares_are_even_and_the_views_keep_shape_and_dtype(name):
    views = VIEWS[name](jnp.asarray(IMAGES))
    assert sum(share for share, _ in views) == 1
    assert {(image.shape, image.dtype) for _, image in views} == {(IMAGES.shape, np.dtype("uint8"))}
