"""Published augmentation policies, drawn per image: AutoAugment, RandAugment, TrivialAugment, AugMix.

All four are chains of the same fifteen ops. Each op has a level in [0, 1] (1 the strongest) and, if it has a direction,
a sign. The five geometric ones are one `resample` with the strengths of the other four at zero. Under `vmap` an op
index that differs between images selects among results and skips no work. So one op of a policy costs one resampling
and all ten colour ops. AutoAugment makes 2 such steps per image, RandAugment `num_ops`, TrivialAugment 1, AugMix `3 *
width`.

As on the 8-bit images of the papers, values are clipped to [0, 1] after each op. The geometric ops are those of the
papers' code: shears about the top left corner, rotations about the centre, shifts of whole pixels, the nearest pixel
read (AugMix: bilinearly).
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from linseed.ranges import Between
from linseed.trainer.data.augment.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
    autocontrast,
    equalize,
    invert,
    posterize,
    solarize,
)
from linseed.trainer.data.augment.warp import Fill, resample, rotation, shearing, translation

# The names in the papers. An op is its index in NAMES; those that are not geometric are branches of `_colour`.
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
COLOUR = (
    "Identity",
    "AutoContrast",
    "Brightness",
    "Color",
    "Contrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Sharpness",
    "Solarize",
)
NAMES = GEOMETRIC + COLOUR


class Ranges(NamedTuple):
    """The meaning of level 1; level 0 is the identity, except for bits."""

    shear: float  # slope
    across: float  # TranslateX, pixels
    down: float  # TranslateY, pixels
    degrees: float
    factor: float  # Brightness, Color, Contrast, Sharpness: 1 - factor or 1 + factor
    bits: tuple[int, int]  # Posterize: bits kept at level 0 and at level 1
    whole: Callable = jnp.round  # how many bits go, as a whole number
    interpolation: str = "nearest"  # of the geometric ops


def autoaugment_ranges(shape) -> Ranges:
    """AutoAugment's ranges (table 6), also RandAugment's; shifts of 150 pixels in 331 in each direction."""
    return Ranges(0.3, shape[1] * 150 / 331, shape[0] * 150 / 331, 30.0, 0.9, (8, 4))


def trivialaugment_ranges(shape) -> Ranges:
    """TrivialAugment's "wide" ranges; the shift is 32 pixels for any image size."""
    return Ranges(0.99, 32.0, 32.0, 135.0, 0.99, (8, 2))


def augmix_ranges(shape) -> Ranges:
    """AugMix's ranges: it shifts by a third and posterizes from 4 bits on."""
    return Ranges(0.3, shape[1] / 3, shape[0] / 3, 30.0, 0.9, (4, 0), jnp.floor, "bilinear")


# Cubuk et al. 2019 (arXiv:1805.09501), appendix: 25 sub-policies of two (op, probability, magnitude 0..9).
# AutoContrast, Equalize and Invert have no strength: their printed magnitude has no effect.
AUTOAUGMENT = {
    "cifar10": (
        (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
        (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
        (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
        (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
    ),
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
        (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    ),
    "svhn": (
        (("ShearX", 0.9, 4), ("Invert", 0.2, 3)),
        (("ShearY", 0.9, 8), ("Invert", 0.7, 5)),
        (("Equalize", 0.6, 5), ("Solarize", 0.6, 6)),
        (("Invert", 0.9, 3), ("Equalize", 0.6, 3)),
        (("Equalize", 0.6, 1), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 3)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, 5)),
        (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, 6), ("AutoContrast", 0.8, 1)),
        (("Equalize", 0.6, 3), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
        (("ShearY", 0.8, 8), ("Invert", 0.7, 4)),
        (("Equalize", 0.9, 5), ("TranslateY", 0.6, 6)),
        (("Invert", 0.9, 4), ("Equalize", 0.6, 7)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
        (("Invert", 0.8, 5), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
        (("Invert", 0.6, 4), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
        (("ShearX", 0.1, 6), ("Invert", 0.6, 5)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
        (("ShearY", 0.8, 4), ("Invert", 0.8, 8)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
        (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 3)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, 5)),
    ),
}

# RandAugment and TrivialAugment omit Invert; AugMix also omits the ops that ImageNet-C tests with.
FOURTEEN = tuple(name for name in NAMES if name != "Invert")
NINE = GEOMETRIC + ("AutoContrast", "Equalize", "Posterize", "Solarize")


def apply_op(image, op, *, level, sign, ranges: Ranges, fill):
    """Applies the op at index `op` of NAMES, at `level` in [0, 1] and with `sign` -1 or 1.

    The image is in [0, 1] and so is the result. Any of the three may be traced.
    """
    strength = sign * level
    geometric = (ranges.shear, ranges.shear, ranges.across, ranges.down, ranges.degrees)
    shear_x, shear_y, right, down, degrees = (
        jnp.where(op == place, strength * most, 0.0) for place, most in enumerate(geometric)
    )
    # The published shear keeps the top left corner where it is, `shearing` the centre.
    height, width, _ = image.shape
    right, down = jnp.trunc(right) - shear_x * height / 2, jnp.trunc(down) - shear_y * width / 2
    # Only one op moves anything, so the order does not matter.
    warps = [rotation(degrees), shearing(shear_x, shear_y), translation(right, down)]
    # Both read the same image: XLA would repeat the resampling inside colour ops applied to `moved`.
    moved = resample(image, warps, fill=fill, interpolation=ranges.interpolation)
    coloured = _colour(image, op, level, strength, ranges)
    return jnp.clip(jnp.where(op < len(GEOMETRIC), moved, coloured), 0.0, 1.0)


def _colour(image, op, level, strength, ranges):
    factor = 1.0 + strength * ranges.factor
    weakest, strongest = ranges.bits
    branches = {
        "Identity": lambda image: image,
        "AutoContrast": autocontrast,
        "Brightness": lambda image: adjust_brightness(image, factor),
        "Color": lambda image: adjust_saturation(image, factor),
        "Contrast": lambda image: adjust_contrast(image, factor),
        "Equalize": equalize,
        "Invert": invert,
        "Posterize": lambda image: posterize(image, weakest - ranges.whole(level * (weakest - strongest))),
        "Sharpness": lambda image: adjust_sharpness(image, factor),
        # from 256 of 255 levels, which inverts nothing, down to 0
        "Solarize": lambda image: solarize(image, (1.0 - level) * (256 / 255)),
    }
    branch = jnp.maximum(op - len(GEOMETRIC), 0)
    return jax.lax.switch(branch, [branches[name] for name in COLOUR], image)


def _chain(image, ops, *, levels, signs, ranges, fill):
    """Applies ops [n] in order, in a loop: `n` steps compile as one, and none is computed twice."""

    def step(image, drawn):
        op, level, sign = drawn
        return apply_op(image, op, level=level, sign=sign, ranges=ranges, fill=fill), None

    image = jnp.clip(image, 0.0, 1.0)
    return jax.lax.scan(step, image, (ops, levels, signs))[0]


def random_autoaugment(key, image, *, table: Literal["cifar10", "imagenet", "svhn"], fill: Fill = 0.5):
    """Draws one of the 25 sub-policies of a published table, and applies each of its two ops with its probability.

    Cubuk et al. 2019 (arXiv:1805.09501): the tables of the paper. The sign of a geometric op or a factor is drawn.
    Magnitude m of 0..9 is level m / 9, as in torchvision, where a factor is 1 - 0.1 m or 1 + 0.1 m. The paper's factors
    are in [0.1, 1.9], and its own code reads that as 0.1 + 0.18 m. What is moved in is grey, nearly the mean colour of
    their code.
    """
    sub_policies = AUTOAUGMENT[table]
    row_key, apply_key, sign_key = jax.random.split(key, 3)
    row = jax.random.randint(row_key, (), 0, len(sub_policies))
    ops, probabilities, magnitudes = (
        jnp.array([[read(op) for op in pair] for pair in sub_policies])[row]
        for read in (lambda op: NAMES.index(op[0]), lambda op: op[1], lambda op: op[2])
    )
    ops = jnp.where(jax.random.bernoulli(apply_key, probabilities), ops, NAMES.index("Identity"))
    signs = jax.random.rademacher(sign_key, (2,), jnp.float32)
    ranges = autoaugment_ranges(image.shape)
    return _chain(image, ops, levels=magnitudes / 9.0, signs=signs, ranges=ranges, fill=fill)


def random_randaugment(
    key,
    image,
    *,
    num_ops: Annotated[int, Between(0, 16)],
    magnitude: Annotated[float, Between(0.0, 10.0)],
    fill: Fill = 0.5,
):
    """Applies `num_ops` ops, each drawn uniformly from fourteen, all at one magnitude out of 10.

    Cubuk et al. 2020 (arXiv:1909.13719), N and M of the paper; 10 is AutoAugment's strongest. torchvision counts M to
    30 (its 9 is 3 here). Larger magnitudes, to which the paper's code extrapolates, are not offered. The sign is drawn,
    as in the paper's code, and as in torchvision for factors, which are 0.1 + 0.18 M in the paper's code. What is moved
    in is grey, as there.
    """
    op_key, sign_key = jax.random.split(key)
    ops = _draw_ops(op_key, FOURTEEN, (num_ops,))
    signs = jax.random.rademacher(sign_key, (num_ops,), jnp.float32)
    # Computed from the signs, so under `shard_map` the level varies over devices as all draws do.
    levels = magnitude / 10.0 * jnp.abs(signs)
    return _chain(image, ops, levels=levels, signs=signs, ranges=autoaugment_ranges(image.shape), fill=fill)


def random_trivialaugment(key, image, *, fill: Fill = 0.0):
    """Applies one op, drawn uniformly from fourteen, at one of 31 levels, drawn uniformly.

    Mueller and Hutter 2021 (arXiv:2103.10158), the "wide" ranges. A factor is 1 - 0.033 l or 1 + 0.033 l for level l of
    0..30, as in torchvision; 0.01 + 0.066 l in the paper's code.
    """
    op_key, level_key, sign_key = jax.random.split(key, 3)
    levels = jax.random.randint(level_key, (1,), 0, 31) / 30.0
    signs = jax.random.rademacher(sign_key, (1,), jnp.float32)
    ops = _draw_ops(op_key, FOURTEEN, (1,))
    return _chain(image, ops, levels=levels, signs=signs, ranges=trivialaugment_ranges(image.shape), fill=fill)


def random_augmix(
    key,
    image,
    *,
    severity: Annotated[float, Between(0.1, 10.0)],
    width: Annotated[int, Between(1, 16)] = 3,
    alpha: Annotated[float, Between(0.01, 100.0)] = 1.0,
    fill: Fill = 0.0,
):
    """Mixes `width` chains of one to three ops, and then the mixture with the image itself.

    Hendrycks et al. 2020 (arXiv:1912.02781): chain weights from Dirichlet(alpha, ...), the mixture's weight from
    Beta(alpha, alpha), levels from [0.1, severity] / 10. Their consistency loss is not included.
    """
    op_key, depth_key, level_key, sign_key, weight_key, beta_key = jax.random.split(key, 6)
    depths = jax.random.randint(depth_key, (width, 1), 1, 4)
    ops = jnp.where(jnp.arange(3) < depths, _draw_ops(op_key, NINE, (width, 3)), NAMES.index("Identity"))
    levels = jax.random.uniform(level_key, (width, 3), jnp.float32, 0.1, severity) / 10.0
    signs = jax.random.rademacher(sign_key, (width, 3), jnp.float32)
    ranges = augmix_ranges(image.shape)
    chains = jax.vmap(
        lambda ops, levels, signs: _chain(image, ops, levels=levels, signs=signs, ranges=ranges, fill=fill)
    )(ops, levels, signs)
    weights = jax.random.dirichlet(weight_key, jnp.full((width,), alpha))
    share = jax.random.beta(beta_key, alpha, alpha)
    mixture = jnp.sum(weights[:, None, None, None] * chains, axis=0)
    return (1.0 - share) * image + share * mixture


def _draw_ops(key, names, shape):
    places = jnp.array([NAMES.index(name) for name in names])
    return places[jax.random.randint(key, shape, 0, len(names))]
