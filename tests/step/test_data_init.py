"""What the training images say about initial weights: a stem whose outputs are white."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.step import data_init as whitening

EPS = 1e-6


@pytest.fixture(scope="module")
def images():
    """uint8 [N, H, W, 3], neighbours and channels correlated as in photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 9, 11, 3))
    smooth = noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, :-1, 1:] + 2 * noise[:, :-1, :-1, :1]
    return np.clip(128 + 20 * smooth, 0, 255).astype(np.uint8)


def normalize(images):
    return (images - 0.5) / 0.25


def source(images):
    return lambda count: whitening.spread(images, count=count, normalize=normalize)


def params_of(features=24):
    kernel = jnp.zeros((2, 2, 3, features))
    return {"stem": {"kernel": kernel, "bias": jnp.ones(features)}, "head": {"kernel": jnp.ones((4, 3))}}


def data_init(images, **changes):
    kwargs = dict(path="stem", examples=len(images), eps=EPS) | changes
    return whitening.make_data_init("whiten", images=source(images), **kwargs)


def test_the_outputs_of_the_stem_are_white_and_come_with_their_negatives(images):
    params = jax.jit(data_init(images))(params_of())
    kernel = params["stem"]["kernel"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = normalize(images.astype(np.float32) / 255)
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions, precision="highest")
    y = np.asarray(y, np.float64).reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-2)
    np.testing.assert_allclose(y[:, 12:], -y[:, :12], atol=1e-5)


def test_nothing_else_is_touched_and_none_touches_nothing(images):
    params = data_init(images)(params_of())
    before = params_of()
    np.testing.assert_array_equal(params["stem"]["bias"], before["stem"]["bias"])
    np.testing.assert_array_equal(params["head"]["kernel"], before["head"]["kernel"])
    assert whitening.make_data_init("none", images=None)(before) is before


def test_a_large_eps_spares_the_directions_that_images_hardly_have(images):
    weak, strong = (data_init(images, eps=eps)(params_of())["stem"]["kernel"][..., 0] for eps in (EPS, 0.05))
    assert np.linalg.norm(strong) < 0.9 * np.linalg.norm(weak)


def test_examples_are_spread_over_the_split_and_read_in_pieces_of_no_consequence(images, monkeypatch):
    order = np.concatenate(list(whitening.spread(images, count=4, normalize=lambda x: x)))
    np.testing.assert_allclose(order, images[[0, 13, 26, 39]] / np.float32(255))
    assert sum(map(len, whitening.spread(images, count=1000, normalize=normalize))) == len(images)
    whole = data_init(images)(params_of())["stem"]["kernel"]
    monkeypatch.setattr(whitening, "_IMAGES_AT_ONCE", 7)
    pieces = data_init(images)(params_of())["stem"]["kernel"]
    np.testing.assert_allclose(whole, pieces, rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_suit_is_refused_in_one_line(images):
    with pytest.raises(ConfigError, match="unknown config.data_init.path 'stm'; did you mean 'stem'"):
        data_init(images, path="stm")(params_of())
    with pytest.raises(ConfigError, match="stem has 16 features; it needs 24, two for each number of a 2x2x3 patch"):
        data_init(images)(params_of(16))
