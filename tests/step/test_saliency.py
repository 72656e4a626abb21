"""The map of a network is where the network looks."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from linseed.trainer.step.saliency import make_saliency


class OnePixel(nn.Module):
    """Answers 1 the surer, the brighter the red of pixel (2, 5) is."""

    @nn.compact
    def __call__(self, images, *, train):
        weight = self.param("weight", nn.initializers.ones, ())
        return jax.numpy.stack([weight - images[:, 2, 5, 0], images[:, 2, 5, 0]], axis=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_map_of_a_network_that_reads_one_pixel_is_that_pixel(channels):
    model, images = OnePixel(), np.full((3, 8, 6, channels), 100, np.uint8)
    params = model.init(jax.random.key(0), images, train=False)["params"]
    saliency = make_saliency(model=model, normalize=lambda pixels: (pixels - 0.5) / 0.25)
    weights = {"params": params, "model_state": {}}
    found = np.array(saliency(weights, images, np.array([0, 1, 1], np.int32)))
    assert found.shape == (3, 8, 6) and (found[:, 2, 5] > 0).all()
    found[:, 2, 5] = 0
    assert not found.any()
