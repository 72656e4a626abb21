"""Augmentation on the device, from one printable string.

    augment = make_augment("pad_crop(4)|flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)")
    images = augment(keys, images, places)

A new op is one function `(key, image, *, ...)`, its arguments annotated with their ranges, and one line in `OPS`. An op
maps one image to one image of the same shape. An op that depends on the epoch takes a `place` instead of a key
(`place.py`). Functions that mix images or change labels (mixup, CutMix) are in `mixing.py`.
"""

import inspect
import itertools

import jax
import jax.numpy as jnp

from linseed.trainer.data.augment.colour import (
    random_autocontrast,
    random_brightness,
    random_color_jitter,
    random_contrast,
    random_equalize,
    random_grayscale,
    random_hue,
    random_invert,
    random_posterize,
    random_saturation,
    random_sharpness,
    random_solarize,
)
from linseed.trainer.data.augment.erase import random_cutout, random_erasing
from linseed.trainer.data.augment.geometry import (
    random_flip_lr,
    random_flip_ud,
    random_lens_distortion,
    random_pad_crop,
    random_perspective,
    random_resized_crop,
    random_rotate,
    random_scale,
    random_shear,
    random_stretch,
    random_translate,
)
from linseed.trainer.data.augment.parse import Op, parse_chain
from linseed.trainer.data.augment.place import alternating_flip_lr
from linseed.trainer.data.augment.policies import (
    random_augmix,
    random_autoaugment,
    random_randaugment,
    random_trivialaugment,
)
from linseed.trainer.data.augment.warp import resample
from linseed.trainer.errors import ConfigError, DataError

OPS = {
    "alternating_flip": alternating_flip_lr,
    "augmix": random_augmix,
    "autoaugment": random_autoaugment,
    "autocontrast": random_autocontrast,
    "brightness": random_brightness,
    "color_jitter": random_color_jitter,
    "contrast": random_contrast,
    "cutout": random_cutout,
    "equalize": random_equalize,
    "flip_lr": random_flip_lr,
    "flip_ud": random_flip_ud,
    "grayscale": random_grayscale,
    "hue": random_hue,
    "invert": random_invert,
    "lens_distortion": random_lens_distortion,
    "pad_crop": random_pad_crop,
    "perspective": random_perspective,
    "posterize": random_posterize,
    "randaugment": random_randaugment,
    "random_erasing": random_erasing,
    "random_resized_crop": random_resized_crop,
    "rotate": random_rotate,
    "saturation": random_saturation,
    "scale": random_scale,
    "sharpness": random_sharpness,
    "shear": random_shear,
    "solarize": random_solarize,
    "stretch": random_stretch,
    "translate": random_translate,
    "trivialaugment": random_trivialaugment,
}


# Hides the submodule `parse` as an attribute; `from ...augment.parse import` still finds it.
def parse(spec: str) -> tuple[Op, ...]:
    """The chain of ops in an op string, all arguments filled in; touches no device.

    Raises ConfigError, in one line, for a string that does not parse, an unknown op, arguments that do not match its
    signature, or a value out of range.
    """
    return parse_chain(spec, OPS)


def make_augment(spec: str):
    """Builds `augment(keys, images, places=None) -> images` from an op string; blank is the identity.

    keys: typed threefry keys [B], one per image, so an image's draw does not depend on the rest of the batch. images:
    float32 [B, H, W, C] in [0, 1], C = 1 or 3. The result has the same shape and dtype. It is clipped to [0, 1] once,
    after the last op; only the published policies clip on their own. The op at index i draws from `fold_in(key, i)`, so
    adding an op at the end does not change the earlier draws. Neighbouring warps with the same `fill` resample once,
    together. places: a `place.Place` [B] for the ops that need it; they draw from its key in the same way.

    `augment` is pure; its caller jits it. When traced it raises DataError for images that are not float32, and
    ConfigError for missing places and for keys of another generator: under `vmap` an "rbg" draw depends on its
    neighbours. Raises ConfigError as `parse` does.
    """
    chain = parse(spec)
    links = [list(link) for _, link in itertools.groupby(enumerate(chain), key=_link)]

    def augment_one(key, image, place):
        for link in links:
            position, (name, arguments) = link[0]
            if _warps(name):
                fill = arguments["fill"]
                image = resample(image, [_draw_warp(key, image.shape, *step) for step in link], fill=fill)
            else:
                draw = jax.random.fold_in(place.key if _needs_place(name) else key, position)
                draw = place._replace(key=draw) if _needs_place(name) else draw
                image = OPS[name](draw, image, **arguments)
        return jnp.clip(image, 0.0, 1.0)

    def augment(keys, images, places=None):
        if (generator := jax.random.key_impl(keys)) != "threefry2x32":
            raise ConfigError(
                f"augment needs keys made with impl='threefry2x32'; '{generator}' draws per batch, not per key"
            )
        if images.dtype != jnp.float32:
            raise DataError(f"augment needs float32 images in [0, 1], not {images.dtype}; divide uint8 by 255 first")
        if places is None and any(_needs_place(name) for name, _ in chain):
            raise ConfigError(f"augment: '{spec}' depends on the epoch; it needs places")
        return jax.vmap(augment_one)(keys, images, places) if chain else images

    return augment


def _needs_place(name):
    return next(iter(inspect.signature(OPS[name]).parameters)) == "place"


def _warps(name):
    return hasattr(OPS[name], "draw")


def _link(step):
    """Equal for neighbours that form one link of the chain: warps with the same fill."""
    position, (name, arguments) = step
    return ("warp", arguments["fill"]) if _warps(name) else ("op", position)


def _draw_warp(key, shape, position, op):
    arguments = {name: value for name, value in op.arguments.items() if name != "fill"}
    return OPS[op.name].draw(jax.random.fold_in(key, position), shape, **arguments)
