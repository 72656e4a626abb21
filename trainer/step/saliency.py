"""Which pixels an answer hangs on: SmoothGrad, for any network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

SAMPLES = 16
NOISE = 0.15  # deviation, as a share of the range of the pixels: 0.1 to 0.2 in the paper


def make_saliency(*, model, normalize: Callable) -> Callable:
    """`saliency(weights, images, classes)` -> float32 [B, H, W], at least 0; in arbitrary units for each image.

    weights: {"params", "model_state"}. images: uint8 [B, H, W, C]. classes: int32 [B], the answers to explain. All are
    host arrays. It is the gradient of the log-probability of the answer by the pixels, averaged over `SAMPLES` noisy
    copies of the image, and of its absolute values the largest over the channels: Smilkov et al. 2017, "SmoothGrad:
    removing noise by adding noise". The noise is the same each time.
    """

    def score(pixels, weights, classes):
        variables = {"params": weights["params"], **weights["model_state"]}
        logits = model.apply(variables, normalize(pixels), train=False)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1).sum()

    gradient = jax.jit(jax.grad(score))

    # The copies are made here, one after another: a loop in the program takes more than twice as long to compile.
    def saliency(weights, images, classes):
        weights, rng, total = jax.device_put(weights), np.random.default_rng(0), 0.0
        pixels = np.float32(images) / 255
        for _ in range(SAMPLES):
            noise = rng.normal(0, NOISE, pixels.shape).astype(np.float32)
            total = total + np.asarray(gradient(pixels + noise, weights, classes))
        return np.abs(total / SAMPLES).max(axis=-1)

    return saliency
