import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from linseed.trainer.data.augment import OPS, make_augment, policies
from linseed.trainer.data.augment.policies import (
    AUTOAUGMENT,
    COLOUR,
    FOURTEEN,
    GEOMETRIC,
    NAMES,
    NINE,
    Ranges,
    apply_op,
    augmix_ranges,
    autoaugment_ranges,
    trivialaugment_ranges,
)

HEIGHT, WIDTH = 24, 32
POLICIES = ("augmix", "autoaugment", "randaugment", "trivialaugment")


@functools.cache
def photograph():
    """uint8 [24, 32, 3]: a real photograph, made small."""
    return np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def unit(pixels):
    return pixels.astype(np.float32) / 255


def many_keys(number=1000):
    return jax.random.split(jax.random.key(2), number)


# The published tables, written down a second time: op, probability in tenths, magnitude.
PUBLISHED = {
    "cifar10": """
        Invert 1 7 Contrast 2 6; Rotate 7 2 TranslateX 3 9; Sharpness 8 1 Sharpness 9 3; ShearY 5 8 TranslateY 7 9;
        AutoContrast 5 8 Equalize 9 2; ShearY 2 7 Posterize 3 7; Color 4 3 Brightness 6 7; Sharpness 3 9 Brightness 7 9;
        Equalize 6 5 Equalize 5 1; Contrast 6 7 Sharpness 6 5; Color 7 7 TranslateX 5 8; Equalize 3 7 AutoContrast 4 8;
        TranslateY 4 3 Sharpness 2 6; Brightness 9 6 Color 2 8; Solarize 5 2 Invert 0 3; Equalize 2 0 AutoContrast 6 0;
        Equalize 2 8 Equalize 6 4; Color 9 9 Equalize 6 6; AutoContrast 8 4 Solarize 2 8; Brightness 1 3 Color 7 0;
        Solarize 4 5 AutoContrast 9 3; TranslateY 9 9 TranslateY 7 9; AutoContrast 9 2 Solarize 8 3;
        Equalize 8 8 Invert 1 3; TranslateY 7 9 AutoContrast 9 1
    """,
    "imagenet": """
        Posterize 4 8 Rotate 6 9; Solarize 6 5 AutoContrast 6 5; Equalize 8 8 Equalize 6 3; Posterize 6 7 Posterize 6 6;
        Equalize 4 7 Solarize 2 4; Equalize 4 4 Rotate 8 8; Solarize 6 3 Equalize 6 7; Posterize 8 5 Equalize 10 2;
        Rotate 2 3 Solarize 6 8; Equalize 6 8 Posterize 4 6; Rotate 8 8 Color 4 0; Rotate 4 9 Equalize 6 2;
        Equalize 0 7 Equalize 8 8; Invert 6 4 Equalize 10 8; Color 6 4 Contrast 10 8; Rotate 8 8 Color 10 2;
        Color 8 8 Solarize 8 7; Sharpness 4 7 Invert 6 8; ShearX 6 5 Equalize 10 9; Color 4 0 Equalize 6 3;
        Equalize 4 7 Solarize 2 4; Solarize 6 5 AutoContrast 6 5; Invert 6 4 Equalize 10 8; Color 6 4 Contrast 10 8;
        Equalize 8 8 Equalize 6 3
    """,
    "svhn": """
        ShearX 9 4 Invert 2 3; ShearY 9 8 Invert 7 5; Equalize 6 5 Solarize 6 6; Invert 9 3 Equalize 6 3;
        Equalize 6 1 Rotate 9 3; ShearX 9 4 AutoContrast 8 3; ShearY 9 8 Invert 4 5; ShearY 9 5 Solarize 2 6;
        Invert 9 6 AutoContrast 8 1; Equalize 6 3 Rotate 9 3; ShearX 9 4 Solarize 3 3; ShearY 8 8 Invert 7 4;
        Equalize 9 5 TranslateY 6 6; Invert 9 4 Equalize 6 7; Contrast 3 3 Rotate 8 4; Invert 8 5 TranslateY 0 2;
        ShearY 7 6 Solarize 4 8; Invert 6 4 Rotate 8 4; ShearY 3 7 TranslateX 9 3; ShearX 1 6 Invert 6 5;
        Solarize 7 2 TranslateY 6 7; ShearY 8 4 Invert 8 8; ShearX 7 9 TranslateY 8 3; ShearY 8 5 AutoContrast 7 3;
        ShearX 7 2 Invert 1 5
    """,
}


@pytest.mark.parametrize("table", sorted(AUTOAUGMENT.keys() | PUBLISHED.keys()))
def test_autoaugments_tables_are_the_published_ones(table):
    rows = [row.split() for row in PUBLISHED[table].split(";")]
    assert len(rows) == len(AUTOAUGMENT[table]) == 25
    for row, sub_policy in zip(rows, AUTOAUGMENT[table], strict=True):
        expected = [(row[i], int(row[i + 1]) / 10, int(row[i + 2])) for i in (0, 3)]
        assert list(sub_policy) == expected


def test_the_spaces_of_ops_are_the_published_ones():
    assert len(NAMES) == len(set(NAMES)) == 15 and NAMES == GEOMETRIC + COLOUR
    assert len(FOURTEEN) == 14 and "Invert" not in FOURTEEN and "Identity" in FOURTEEN
    tested_by_imagenet_c = {"Brightness", "Color", "Contrast", "Sharpness"}
    assert set(NINE) == set(FOURTEEN) - tested_by_imagenet_c - {"Identity"}


def test_ranges_are_the_published_ones():
    assert autoaugment_ranges((331, 662, 3)) == Ranges(0.3, 300.0, 150.0, 30.0, 0.9, (8, 4))
    assert trivialaugment_ranges((331, 662, 3)) == Ranges(0.99, 32.0, 32.0, 135.0, 0.99, (8, 2))
    assert augmix_ranges((33, 66, 3)) == Ranges(0.3, 22.0, 11.0, 30.0, 0.9, (4, 0), jnp.floor, "bilinear")


def test_what_is_moved_in_is_as_published():
    fills = {name: inspect.signature(OPS[name]).parameters["fill"].default for name in POLICIES}
    assert fills == {"augmix": 0.0, "autoaugment": 0.5, "randaugment": 0.5, "trivialaugment": 0.0}


# Each op, against Pillow, called as in the papers' code.


def affine(image, *coefficients, resample=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample)


# At a level t in [0, 1] with a sign s, AutoAugment's ranges.
PILLOW = {
    "ShearX": lambda image, t, s: affine(image, 1, s * 0.3 * t, 0, 0, 1, 0),
    "ShearY": lambda image, t, s: affine(image, 1, 0, 0, s * 0.3 * t, 1, 0),
    "TranslateX": lambda image, t, s: affine(image, 1, 0, -s * int(t * WIDTH * 150 / 331), 0, 1, 0),
    "TranslateY": lambda image, t, s: affine(image, 1, 0, 0, 0, 1, -s * int(t * HEIGHT * 150 / 331)),
    "Rotate": lambda image, t, s: image.rotate(s * 30 * t),
    "Identity": lambda image, t, s: image,
    "AutoContrast": lambda image, t, s: ImageOps.autocontrast(image),
    "Brightness": lambda image, t, s: ImageEnhance.Brightness(image).enhance(1 + s * 0.9 * t),
    "Color": lambda image, t, s: ImageEnhance.Color(image).enhance(1 + s * 0.9 * t),
    "Contrast": lambda image, t, s: ImageEnhance.Contrast(image).enhance(1 + s * 0.9 * t),
    "Equalize": lambda image, t, s: ImageOps.equalize(image),
    "Invert": lambda image, t, s: ImageOps.invert(image),
    "Posterize": lambda image, t, s: ImageOps.posterize(image, 8 - round(4 * t)),
    "Sharpness": lambda image, t, s: ImageEnhance.Sharpness(image).enhance(1 + s * 0.9 * t),
    "Solarize": lambda image, t, s: ImageOps.solarize(image, 256 - 256 * t),
}


@functools.cache
def applied():
    """apply_op of all ops, at three levels and both signs, on one photograph: one program."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0))
    def apply(op, level, sign):
        ranges = autoaugment_ranges((HEIGHT, WIDTH, 3))
        return apply_op(unit(photograph()), op, level=level, sign=sign, ranges=ranges, fill=0.0)

    grid = np.meshgrid(np.arange(len(NAMES)), np.float32([0, 4 / 9, 1]), np.float32([-1, 1]), indexing="ij")
    out = np.asarray(apply(*(axis.reshape(-1) for axis in grid)))
    return out.reshape(len(NAMES), 3, 2, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", NAMES)
def test_each_op_is_pillows_at_every_level_and_sign(name):
    for place, level in enumerate([0, 4 / 9, 1]):
        for column, sign in enumerate([-1, 1]):
            expected = np.asarray(PILLOW[name](Image.fromarray(photograph()), level, sign), np.float32)
            ours = applied()[NAMES.index(name), place, column] * 255
            if name in GEOMETRIC:
                same = np.abs(ours - expected).max(axis=-1) < 0.01
                assert same.mean() > 0.99  # all but ties of the nearest pixel
            assert np.abs(ours - expected).mean() < 1.0


AUGMIX = {
    "ShearX": lambda image, t: affine(image, 1, 0.3 * t, 0, 0, 1, 0, resample=Image.Resampling.BILINEAR),
    "ShearY": lambda image, t: affine(image, 1, 0, 0, 0.3 * t, 1, 0, resample=Image.Resampling.BILINEAR),
    "TranslateX": lambda image, t: affine(image, 1, 0, -int(t * WIDTH / 3), 0, 1, 0),
    "TranslateY": lambda image, t: affine(image, 1, 0, 0, 0, 1, -int(t * HEIGHT / 3)),
    "Rotate": lambda image, t: image.rotate(30 * t, Image.Resampling.BILINEAR),
    "Posterize": lambda image, t: ImageOps.posterize(image, 4 - int(4 * t)),
}


def test_the_ops_of_augmix_are_pillows_with_its_own_rounding():
    levels = np.float32([0.2, 0.45, 0.9])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def apply(op, level):
        ranges = augmix_ranges((HEIGHT, WIDTH, 3))
        return apply_op(unit(photograph()), op, level=level, sign=1.0, ranges=ranges, fill=0.0)

    found = np.asarray(apply(np.array([NAMES.index(name) for name in AUGMIX]), levels)) * 255
    for name, images in zip(AUGMIX, found, strict=True):
        for level, ours in zip(levels.tolist(), images, strict=True):
            expected = np.asarray(AUGMIX[name](Image.fromarray(photograph()), level), np.float32)
            compared = np.ones((HEIGHT, WIDTH), bool)
            if name in GEOMETRIC:
                compared = (expected.max(axis=-1) > 0) & (ours.max(axis=-1) > 0)  # not the border, not the fill
                assert compared.mean() > 0.5
            assert np.abs(ours - expected)[compared].mean() < 1.0, (name, level)


def test_what_has_a_strength_is_the_identity_at_level_0():
    for name in NAMES:
        unchanged = np.allclose(applied()[NAMES.index(name), 0], unit(photograph()), atol=1e-6)
        assert unchanged == (name not in {"AutoContrast", "Equalize", "Invert"})


def test_what_has_no_direction_ignores_the_sign():
    for name in ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize"):
        np.testing.assert_array_equal(*np.moveaxis(applied()[NAMES.index(name)], 1, 0))


# The policies: which ops they draw, seen through a stand-in that records them.


@pytest.fixture
def recorded(monkeypatch):
    """`recorded(policy, keys, **arguments)` -> ops, levels, signs, each [keys, ..., steps]."""

    def record(name, *, number=2000, shape=(8, 10, 3), **arguments):
        seen = []

        def chain(image, ops, *, levels, signs, ranges, fill):
            seen.append((ops, levels, signs))
            return image

        monkeypatch.setattr(policies, "_chain", chain)

        def one(key):
            OPS[name](key, np.zeros(shape, np.float32), **arguments)
            return seen.pop()

        return [np.asarray(drawn) for drawn in jax.jit(lambda keys: jax.lax.map(one, keys))(many_keys(number))]

    return record


@pytest.mark.parametrize("table", sorted(AUTOAUGMENT))
def test_autoaugment_draws_each_sub_policy_and_applies_its_ops_with_their_probability(recorded, table):
    ops, levels, signs = recorded("autoaugment", table=table, number=5000)
    expected = np.zeros((2, len(NAMES), 10))
    identity = NAMES.index("Identity")
    for sub_policy in AUTOAUGMENT[table]:
        for position, (name, probability, magnitude) in enumerate(sub_policy):
            expected[position, NAMES.index(name), magnitude] += probability / 25
            expected[position, identity, magnitude] += (1 - probability) / 25
    for position in range(2):
        found = np.zeros((len(NAMES), 10))
        np.add.at(found, (ops[:, position], np.round(levels[:, position] * 9).astype(int)), 1 / len(ops))
        assert (found[expected[position] == 0] == 0).all()
        np.testing.assert_allclose(found, expected[position], atol=0.025)
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.05


def test_randaugment_draws_n_ops_evenly_at_one_level(recorded):
    ops, levels, signs = recorded("randaugment", num_ops=3, magnitude=7.0)
    assert ops.shape == (2000, 3) and (levels == np.float32(0.7)).all() and abs(signs.mean()) < 0.05
    counts = np.bincount(ops.reshape(-1), minlength=len(NAMES))
    assert counts[NAMES.index("Invert")] == 0
    assert np.delete(counts, NAMES.index("Invert")).min() > 350  # 429 expected, standard deviation 20
    assert abs(np.corrcoef(ops[:, 0], ops[:, 1])[0, 1]) < 0.1


def test_trivialaugment_draws_one_op_and_one_of_31_levels(recorded):
    ops, levels, signs = recorded("trivialaugment", number=5000)
    assert ops.shape == (5000, 1) and set(np.unique(ops)) == {NAMES.index(name) for name in FOURTEEN}
    np.testing.assert_allclose(np.unique(levels), np.arange(31) / 30, atol=1e-6)
    assert np.bincount(np.round(levels[:, 0] * 30).astype(int)).min() > 110  # 161 expected, standard deviation 13
    assert abs(signs.mean()) < 0.05


def test_randaugment_without_ops_is_the_identity():
    image = unit(photograph())
    np.testing.assert_array_equal(OPS["randaugment"](jax.random.key(0), image, num_ops=0, magnitude=10.0), image)


# AugMix.


def test_augmix_is_a_convex_mixture_of_its_chains_and_the_image(monkeypatch):
    # Chains that turn an image of zeros into the constants 1: what is left is the weight of the mixture.
    monkeypatch.setattr(policies, "_chain", lambda image, ops, **_: jnp.ones_like(image))
    mix = jax.jit(jax.vmap(functools.partial(OPS["augmix"], severity=3.0), (0, None)))
    shares = np.asarray(mix(many_keys(), np.zeros((2, 2, 1), np.float32)))[:, 0, 0, 0]
    tenths, _ = np.histogram(shares, bins=10, range=(0, 1))  # Beta(1, 1) is uniform
    assert tenths.min() > 60 and tenths.max() < 140
    # The weights of the chains sum to 1: a white image under white chains stays white.
    white = mix(many_keys(), np.ones((2, 2, 1), np.float32))
    np.testing.assert_allclose(white, 1.0, atol=1e-6)


def test_augmix_draws_chains_of_one_to_three_ops_below_its_severity(monkeypatch):
    # Stand-in chains that return their draws in an image of [3, 3, 1]: op, level and sign of the three steps.
    def chain(image, ops, *, levels, signs, ranges, fill):
        return jnp.stack([ops.astype(jnp.float32), levels, signs])[..., None]

    monkeypatch.setattr(policies, "_chain", chain)
    monkeypatch.setattr(policies.jax.random, "beta", lambda key, a, b: jnp.float32(1.0))
    op = functools.partial(OPS["augmix"], severity=4.0, width=1)
    drawn = np.asarray(jax.jit(jax.vmap(op, (0, None)))(many_keys(2000), np.zeros((3, 3, 1), np.float32)))[..., 0]
    ops, levels, signs = np.moveaxis(drawn, 1, 0)
    steps = np.round(ops).astype(int)
    depths = (steps != NAMES.index("Identity")).sum(axis=1)
    assert np.bincount(depths, minlength=4)[0] == 0 and np.bincount(depths, minlength=4)[1:].min() > 580
    for depth in (1, 2):
        assert (steps[depths == depth, depth:] == NAMES.index("Identity")).all()
    assert {NAMES[place] for place in np.unique(steps)} == {*NINE, "Identity"}
    assert 0.01 - 1e-6 <= levels.min() < 0.015 and 0.39 < levels.max() <= 0.4 + 1e-6
    assert abs(signs.mean()) < 0.05


# All of them.


@pytest.mark.parametrize("spec", ["randaugment(2, 9)", "augmix(3, width=1)"])
def test_policies_take_grey_images_and_what_jitter_pushed_out_of_range(spec):
    images = np.random.default_rng(0).random((4, 20, 24, 1), np.float32) * 4 - 1.5
    out = np.asarray(jax.jit(make_augment(spec))(many_keys(4), images))
    assert out.shape == images.shape and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1


def test_a_policys_program_does_not_grow_with_its_steps():
    images = np.zeros((2, 8, 8, 3), np.float32)
    short, long = (len(str(jax.make_jaxpr(make_augment(f"randaugment({n}, 5)"))(many_keys(2), images))) for n in (1, 9))
    assert long < 1.1 * short


def test_policies_are_the_same_under_shard_map():
    spec = "randaugment(2, 5)"  # whose level, unlike the draws, is one constant for all devices
    images = np.stack([unit(photograph())] * 4)
    batch = jax.sharding.PartitionSpec("batch")
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    sharded = jax.jit(jax.shard_map(make_augment(spec), mesh=mesh, in_specs=batch, out_specs=batch))
    whole = jax.jit(make_augment(spec))(many_keys(4), images)
    np.testing.assert_allclose(sharded(many_keys(4), images), whole, atol=1e-6)
