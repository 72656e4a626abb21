"""Which pixels an answer hangs on: SmoothGrad, for any network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from linseed.trainer.step.train_step import to_unit

SAMPLES = 16
NOISE = 0.15  # deviation, as a share of the range of the pixels: 0.1 to 0.2 in the paper


def make_saliency(*, model, normalize: Callable) -> Callable:
    """`saliency(weights, images, classes, key)` -> float32 [B, H, W], at least 0; in arbitrary units for each image.

    weights: {"params", "model_state"}. images: uint8 [B, H, W, C]. classes: int32 [B], the answers to explain. It is
    the gradient of the log-probability of the answer by the pixels, averaged over `SAMPLES` noisy copies of the image,
    and of its absolute values the largest over the channels: Smilkov et al. 2017, "SmoothGrad: removing noise by adding
    noise".
    """

    def saliency(weights, images, classes, key):
        variables = {"params": weights["params"], **weights["model_state"]}
        pixels = to_unit(images)

        def score(pixels):
            logits = model.apply(variables, normalize(pixels), train=False)
            return jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1).sum()

        def sample(key):
            return jax.grad(score)(pixels + NOISE * jax.random.normal(key, pixels.shape))

        gradients = jax.lax.map(sample, jax.random.split(key, SAMPLES))
        return jnp.abs(gradients.mean(axis=0)).max(axis=-1)

    return saliency
