"""Test-time augmentation: averages the logits over views of an image.

An entry of `VIEWS` takes uint8 images [B, H, W, C] and returns (weight, images) pairs, whose weights sum to 1. It runs
before normalisation, like augmentation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _none(images):
    return [(1.0, images)]


def _mirror(images):
    return [(0.5, images), (0.5, images[:, :, ::-1])]


def _mirror_translate(images):
    # Weight 1/2 for the image, 1/4 for each shift by one pixel, up-left and down-right, with a reflected border; each
    # with its mirror image. As in Jordan's CIFAR-10 records, 2024.
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [padded[:, start : start + height, start : start + width] for start in (0, 2)]
    places = [(0.5, images), *((0.25, image) for image in shifted)]
    return [(weight * half, view) for weight, image in places for half, view in _mirror(image)]


VIEWS = {"mirror": _mirror, "mirror_translate": _mirror_translate, "none": _none}


def mean_over_views(logits: Callable, views: Callable) -> Callable:
    """`logits(weights, images)`, averaged over `views`, an entry of `VIEWS`.

    One view goes through the network at a time.
    """

    def mean_logits(weights, images):
        shares, seen = zip(*views(images), strict=True)
        if len(seen) == 1:
            return logits(weights, images)
        each = jax.lax.map(lambda view: logits(weights, view), jnp.stack(seen))  # [views, B, C]
        return jnp.tensordot(jnp.asarray(shares, each.dtype), each, axes=1)

    return mean_logits
