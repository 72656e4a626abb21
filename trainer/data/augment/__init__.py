"""Augmentation on the device, from one printable string.

    augment = make_augment("pad_crop(4)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)")
    images = augment(keys, images)

A new op is one function `(key, image, *, ...)`, its arguments annotated with their
ranges, and one line in `OPS`. An op maps one image to one image of the same shape;
what mixes images or changes labels (mixup, CutMix) is no op and does not belong here.
"""

import jax
import jax.numpy as jnp

from trainer.data.augment.colour import (
    random_brightness,
    random_color_jitter,
    random_contrast,
    random_hue,
    random_saturation,
)
from trainer.data.augment.geometry import random_flip_lr, random_pad_crop
from trainer.data.augment.parse import Op, parse_chain
from trainer.errors import ConfigError, DataError

OPS = {
    "brightness": random_brightness,
    "color_jitter": random_color_jitter,
    "contrast": random_contrast,
    "flip_lr": random_flip_lr,
    "hue": random_hue,
    "pad_crop": random_pad_crop,
    "saturation": random_saturation,
}


# Hides the submodule of the same name as an attribute; `from trainer.data.augment.parse import ...` still finds that.
def parse(spec: str) -> tuple[Op, ...]:
    """The chain that an op string names, every argument filled in; touches no device.

    Raises ConfigError, in one line, for a string that does not parse, an unknown op,
    arguments that do not fit its signature, or a value out of range.
    """
    return parse_chain(spec, OPS)


def make_augment(spec: str):
    """Builds `augment(keys, images) -> images` from an op string; blank is the identity.

    keys: typed threefry keys [B], one for each image, so that its draw depends on
    nothing else in the batch. images: float32 [B, H, W, C] in [0, 1], C = 1 or 3.
    The result has the same shape and dtype, clipped to [0, 1] once, after the last
    op: no op clips on its own. The op at position i draws from `fold_in(key, i)`, so
    an op added at the end leaves the draws before it as they were.

    `augment` is pure, and its caller jits it. When traced it raises DataError for
    images that are not float32, and ConfigError for keys of another generator: under
    `vmap` an "rbg" draw depends on its neighbours. Raises ConfigError as `parse` does.
    """
    chain = parse(spec)

    def augment_one(key, image):
        for position, (name, arguments) in enumerate(chain):
            image = OPS[name](jax.random.fold_in(key, position), image, **arguments)
        return jnp.clip(image, 0.0, 1.0)

    def augment(keys, images):
        if (generator := jax.random.key_impl(keys)) != "threefry2x32":
            raise ConfigError(
                f"augment needs keys made with impl='threefry2x32'; '{generator}' draws by batch, not by key"
            )
        if images.dtype != jnp.float32:
            raise DataError(f"augment needs float32 images in [0, 1], not {images.dtype}; divide uint8 by 255 first")
        return jax.vmap(augment_one)(keys, images) if chain else images

    return augment
