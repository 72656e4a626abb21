import colorsys
import functools
import inspect
import math
import os
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from linseed.trainer.data.augment import OPS, Op, colour, make_augment, parse
from linseed.trainer.data.augment.parse import signature, usage
from linseed.trainer.data.augment.place import Place, places
from linseed.trainer.errors import ConfigError, DataError

# Not square, so that a swapped axis shows; more than 256 pixels, or there is nothing to equalize.
BATCH, HEIGHT, WIDTH = 16, 16, 18


# Ops whose every setting changes the image: ops without a strength, and published mixtures of some.
NEVER_IDENTITY = {"alternating_flip", "augmix", "autoaugment", "trivialaugment"}


def op_string(name, value):
    """The op with every number set to `value(name, kind, range)`; of named choices the default, or the first."""
    arguments = []
    for p in signature(OPS[name]).parameters.values():
        if typing.get_origin(p.annotation) is typing.Annotated:
            arguments.append(f"{p.name}={value(p.name, *typing.get_args(p.annotation))}")
        elif p.default is p.empty:
            arguments.append(f"{p.name}={typing.get_args(p.annotation)[0]!r}")
    return f"{name}({', '.join(arguments)})"


def typical(name):
    """Values well inside their ranges: half of a bounded one, else 2 (integers) or 0.5 above the lowest."""

    def value(_, kind, range):
        return kind(range.high / 2) if math.isfinite(range.high) else range.low + (2 if kind is int else 0.5)

    return op_string(name, value)


def weakest(name):
    """The lowest value of each argument, except that a crop keeps the whole area in whatever shape."""
    kept = {"min_area": 1.0, "max_aspect": 2.0}
    return op_string(name, lambda argument, kind, range: kept.get(argument, range.low))


# Compiling is nearly all the time these tests take, so: once each, and without LLVM's optimiser.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def compiled(spec):
    augment = make_augment(spec)
    return fast_jit(lambda keys, images: augment(keys, images, Place(keys, jnp.zeros(len(images), jnp.int32))))


adjust_brightness, adjust_contrast, adjust_saturation, adjust_sharpness, adjust_hue = map(
    fast_jit,
    (
        colour.adjust_brightness,
        colour.adjust_contrast,
        colour.adjust_saturation,
        colour.adjust_sharpness,
        colour.adjust_hue,
    ),
)


@functools.cache
def images(channels=3):
    return np.random.default_rng(0).random((BATCH, HEIGHT, WIDTH, channels), np.float32)


@functools.cache
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), BATCH)


@functools.cache
def many_keys():
    return jax.random.split(jax.random.key(2), 1000)


# Every op of the table.


@pytest.mark.parametrize("name", sorted(OPS))
def test_shape_and_dtype_are_kept_and_values_stay_in_0_1(name):
    augment = compiled(typical(name))
    for channels in (1, 3):
        out = jax.eval_shape(augment, keys(), images(channels))
        assert out.shape == images(channels).shape and out.dtype == jnp.float32
    out = augment(keys(), images())
    assert np.min(out) >= 0.0 and np.max(out) <= 1.0


@pytest.mark.parametrize("name", sorted(OPS.keys() - NEVER_IDENTITY))
def test_zero_strength_is_the_identity(name):
    out = compiled(weakest(name))(keys(), images())
    np.testing.assert_allclose(out, images(), atol=1e-5)


@pytest.mark.parametrize("name", sorted(OPS))
def test_same_key_same_result_and_other_key_other_result(name):
    augment = compiled(typical(name))
    np.testing.assert_array_equal(augment(keys(0), images()), augment(keys(0), images()))
    assert not np.array_equal(augment(keys(0), images()), augment(keys(1), images()))


@pytest.mark.parametrize("name", sorted(OPS))
def test_each_image_gets_its_own_draw(name):
    same = np.repeat(images()[:1], BATCH, axis=0)
    out = np.asarray(compiled(typical(name))(keys(), same))
    assert len({one.tobytes() for one in out}) >= 2  # a flip has no more than two outcomes


def test_alternating_flip_shows_each_image_from_both_sides_in_any_two_epochs():
    augment, root, count = fast_jit(make_augment("alternating_flip()")), jax.random.key(5), 200
    each = np.random.default_rng(0).random((count, 4, 6, 3), np.float32)
    index = np.random.default_rng(1).permutation(count).astype(np.int32)  # of the example in each row
    flipped = []
    for epoch in range(4):
        keys = jax.random.split(jax.random.key(epoch), count)  # those of a step have no part in it
        out = np.asarray(augment(keys, each, places(root, index, np.full(count, epoch, np.int32))))
        mirrored = (out == each[:, :, ::-1]).all((1, 2, 3))
        assert (mirrored ^ (out == each).all((1, 2, 3))).all()
        flipped.append(mirrored)
    np.testing.assert_array_equal(flipped[1:], np.logical_not(flipped[:-1]))
    # Which side comes first is even chance by example, and another run's root another draw.
    assert abs(flipped[0].mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    other = augment(keys, each, places(jax.random.key(6), index, np.zeros(count, np.int32)))
    assert 0.3 < np.mean((np.asarray(other) == each[:, :, ::-1]).all((1, 2, 3)) == flipped[0]) < 0.7
    # It goes with the example, not with its row.
    order = np.random.default_rng(2).permutation(count)
    out = augment(keys, each[order], places(root, index[order], np.zeros(count, np.int32)))
    np.testing.assert_array_equal((np.asarray(out) == each[order][:, :, ::-1]).all((1, 2, 3)), flipped[0][order])


def test_an_op_that_goes_by_the_epoch_needs_places():
    with pytest.raises(ConfigError, match="it needs places"):
        make_augment("pad_crop(2)|alternating_flip()")(keys(), images())


@pytest.mark.parametrize("name", sorted(OPS))
def test_an_images_draw_does_not_depend_on_its_place_in_the_batch(name):
    augment = compiled(typical(name))
    whole = augment(keys(), images())
    order = np.random.default_rng(1).permutation(BATCH)
    np.testing.assert_array_equal(augment(keys()[order], images()[order]), whole[order])


@pytest.mark.parametrize("name", sorted(OPS))
def test_the_signature_of_each_op_says_how_to_write_it(name):
    assert list(inspect.signature(OPS[name]).parameters)[:2] in (["key", "image"], ["place", "image"])
    [op] = parse(typical(name))
    assert op.name == name and list(op.arguments) == list(signature(OPS[name]).parameters)


# The chain.


def test_a_batch_equals_its_images_one_by_one():
    augment = compiled("pad_crop(2)|rotate(15)|shear(0.1)|flip_lr(0.5)|color_jitter(0.5, 0.5, 0.5)|cutout(5)")
    whole = augment(keys(), images())
    for i in range(BATCH):
        alone = augment(keys()[i : i + 1], images()[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-4)


@pytest.mark.parametrize("spec", ["", "  \n "])
def test_a_blank_string_is_the_identity(spec):
    assert parse(spec) == ()
    np.testing.assert_array_equal(compiled(spec)(keys(), images()), images())


def test_ops_run_in_the_order_written():
    names = ["hue", "flip_lr", "contrast"]
    assert [op.name for op in parse("hue(0.1)|flip_lr(0.5)|contrast(0.1)")] == names
    # Contrast leaves a uniform image as it is, but not one that black padding has cut into.
    uniform = np.full((BATCH, HEIGHT, WIDTH, 3), 0.5, np.float32)
    contrast_first = compiled("contrast(0.5)|pad_crop(2)")(keys(), uniform)
    padding_first = compiled("pad_crop(2)|contrast(0.5)")(keys(), uniform)
    assert set(np.unique(np.round(contrast_first, 5))) == {np.float32(0.0), np.float32(0.5)}
    assert len(np.unique(np.round(padding_first, 5))) > 2


def test_an_op_added_at_the_end_leaves_earlier_draws_as_they_were():
    short, long = compiled("pad_crop(2)"), compiled("pad_crop(2)|brightness(0)|flip_lr(0)")
    np.testing.assert_array_equal(short(keys(), images()), long(keys(), images()))


def test_the_same_op_twice_draws_twice():
    out = np.asarray(compiled("flip_lr(0.5)|flip_lr(0.5)")(keys(), images()))
    unchanged = sum(np.array_equal(a, b) for a, b in zip(out, images(), strict=True))
    assert 0 < unchanged < BATCH  # with one shared draw the two flips always cancel


def test_values_are_clipped_once_after_the_last_op():
    def factors(position):
        draws = jax.vmap(jax.random.fold_in, (0, None))(keys(), position)
        one = np.ones((1, 1, 1), np.float32)
        return np.asarray(jax.vmap(lambda key: OPS["brightness"](key, one, strength=1.0))(draws)).reshape(-1, 1, 1, 1)

    first, second = factors(0), factors(1)
    expected = np.clip(images() * first * second, 0.0, 1.0)
    assert np.max(np.abs(np.clip(images() * first, 0.0, 1.0) * second - expected)) > 0.1  # clipping early would show
    np.testing.assert_allclose(compiled("brightness(1.0)|brightness(1.0)")(keys(), images()), expected, atol=1e-6)


def test_images_that_are_not_float32_are_refused():
    with pytest.raises(DataError, match="float32.*uint8"):
        make_augment("")(keys(), (images() * 255).astype(np.uint8))


def test_keys_whose_draws_depend_on_the_batch_are_refused():
    with pytest.raises(ConfigError, match="threefry2x32.*rbg"):
        make_augment("")(jax.random.key(0, impl="rbg")[None], images()[:1])


def test_one_traced_chain_serves_every_key():
    augment, traces = make_augment("flip_lr(0.5)"), []
    jitted = fast_jit(lambda keys, images: traces.append(1) or augment(keys, images))
    jitted(keys(0), images())
    jitted(keys(1), images())
    assert len(traces) == 1


# Colour, against Pillow and colorsys.


@functools.cache
def picture():
    """uint8 [24, 20, 3]: gradients, noise, and patches of pure, grey, black and white pixels."""
    rng = np.random.default_rng(2)
    rows, columns = np.mgrid[0:24, 0:20]
    picture = np.stack([rows * 10, columns * 12, (rows + columns) * 5], axis=-1) + rng.integers(0, 16, (24, 20, 3))
    picture[0, :8] = [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [9, 9, 9],
        [0, 0, 0],
        [255, 255, 255],
        [7, 7, 3],
        [3, 7, 7],
    ]
    return picture.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.8, 1.0, 1.3, 2.0])
@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
        (adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_adjustments_agree_with_pillow(adjust, enhance, factor):
    pillow = np.asarray(enhance(Image.fromarray(picture())).enhance(factor), np.float32)
    ours = np.clip(adjust(picture().astype(np.float32) / 255, factor), 0.0, 1.0) * 255
    # Pillow rounds the grey it blends with to a whole level, and then the result.
    assert np.max(np.abs(np.round(ours) - pillow)) <= 1.0
    if factor == 1.0:
        np.testing.assert_allclose(ours, pillow, atol=1e-4)


POINT_OPS = {
    "autocontrast": (colour.autocontrast, ImageOps.autocontrast),
    "equalize": (colour.equalize, ImageOps.equalize),
    "grayscale": (colour.grayscale, lambda image: ImageOps.grayscale(image).convert("RGB")),
    "invert": (colour.invert, ImageOps.invert),
    "posterize 1": (lambda image: colour.posterize(image, 1), lambda image: ImageOps.posterize(image, 1)),
    "posterize 5": (lambda image: colour.posterize(image, 5), lambda image: ImageOps.posterize(image, 5)),
    "posterize 8": (lambda image: colour.posterize(image, 8), lambda image: ImageOps.posterize(image, 8)),
    "solarize 0": (lambda image: colour.solarize(image, 0.0), lambda image: ImageOps.solarize(image, 0)),
    "solarize 100": (lambda image: colour.solarize(image, 99.5 / 255), lambda image: ImageOps.solarize(image, 100)),
    "solarize 256": (lambda image: colour.solarize(image, 256 / 255), lambda image: ImageOps.solarize(image, 256)),
}


@pytest.mark.parametrize("name", sorted(POINT_OPS))
def test_point_ops_are_pillows_to_the_level(name):
    ours, pillows = POINT_OPS[name]
    dark = (np.random.default_rng(3).random((60, 60, 3)) ** 3 * 200).astype(np.uint8)
    for pixels in (picture(), dark, np.full((20, 20, 3), 77, np.uint8)):
        expected = np.asarray(pillows(Image.fromarray(pixels)), np.float32)
        out = np.asarray(ours(pixels.astype(np.float32) / 255)) * 255
        # Pillow cuts the fractions of a stretched level off, and rounds those of a grey one.
        tolerance = 1.0 if name in ("autocontrast", "grayscale") else 1e-3
        np.testing.assert_allclose(out, expected, atol=tolerance)


def test_equalize_leaves_an_image_of_less_than_256_pixels_as_it_is():
    small = picture()[:12]
    assert small[..., 0].size == 240
    np.testing.assert_array_equal(colour.equalize(small / np.float32(255)), small / np.float32(255))


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 2, 3), (2, 2, 1)])
def test_without_inner_pixels_there_is_nothing_to_sharpen(shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_array_equal(colour.adjust_sharpness(image, 3.0), image)


@pytest.mark.parametrize("turns", [-0.5, -0.2, -1 / 6, 0.0, 0.05, 1 / 3, 0.5])
def test_hue_is_a_rotation_in_hsv(turns):
    image = picture().astype(np.float32) / 255
    expected = np.empty_like(image, dtype=np.float64)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place].astype(float))
        expected[place] = colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
    np.testing.assert_allclose(adjust_hue(image, turns), expected, atol=2e-5)


def test_a_third_of_a_turn_moves_red_to_green_to_blue():
    red, green, blue = np.eye(3, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(adjust_hue(red, 1 / 3), green, atol=1e-5)
    np.testing.assert_allclose(adjust_hue(green, 1 / 3), blue, atol=1e-5)
    np.testing.assert_allclose(adjust_hue(blue, 1 / 3), red, atol=1e-5)


def test_hue_commutes_with_scale_and_shift_also_outside_0_1():
    image = np.asarray(images()[0])
    np.testing.assert_allclose(adjust_hue(3.0 * image - 1.0, 0.2), 3.0 * adjust_hue(image, 0.2) - 1.0, atol=1e-5)


def test_brightness_contrast_and_saturation_commute_without_clipping():
    ops = [
        functools.partial(adjust_brightness, factor=1.4),
        functools.partial(adjust_contrast, factor=0.5),
        functools.partial(adjust_saturation, factor=1.7),
    ]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        one, other = ops[first](ops[second](images()[0])), ops[second](ops[first](images()[0]))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_grey_image_has_no_saturation_and_no_hue():
    grey = images(1)[0]
    np.testing.assert_allclose(adjust_saturation(grey, 1.7), grey, atol=1e-6)
    np.testing.assert_array_equal(adjust_hue(grey, 0.3), grey)
    # One channel or three equal ones: the same picture, so the same contrast.
    contrast = adjust_contrast(np.repeat(grey, 3, axis=-1), 0.5)
    np.testing.assert_allclose(contrast, np.repeat(adjust_contrast(grey, 0.5), 3, axis=-1), atol=1e-6)


def test_other_than_one_or_three_channels_are_refused():
    with pytest.raises(DataError, match="1 or 3 channels; these have 4"):
        colour.luma(np.zeros((2, 2, 4), np.float32))


@pytest.mark.parametrize(("strength", "low", "high"), [(0.3, 0.7, 1.3), (1.8, 0.0, 2.8)])
def test_factors_fill_their_range_evenly_and_are_never_negative(strength, low, high):
    draw = functools.partial(OPS["brightness"], strength=strength)
    factors = np.asarray(fast_jit(jax.vmap(draw, in_axes=(0, None)))(many_keys(), np.ones((1, 1, 1), np.float32)))
    assert low <= factors.min() and factors.max() <= high
    tenths, _ = np.histogram(factors, bins=10, range=(low, high))
    assert tenths.min() > 60 and tenths.max() < 140  # 100 expected, standard deviation 9.5


def test_color_jitter_draws_each_part_on_its_own():
    # The middle level of black, grey and white shows brightness alone; the distance of the ends shows contrast too.
    image = np.repeat(np.float32([0.0, 0.5, 1.0]), 3).reshape(1, 3, 3)
    draw = functools.partial(OPS["color_jitter"], brightness=0.5, contrast=0.5, saturation=0.0)
    out = np.asarray(fast_jit(jax.vmap(draw, (0, None)))(many_keys(), image))[:, 0, :, 0]
    scale = out[:, 1] / 0.5
    contrast = (out[:, 2] - out[:, 0]) / scale
    assert abs(np.corrcoef(scale, contrast)[0, 1]) < 0.15
    assert np.std(scale) > 0.2 and np.std(contrast) > 0.2


# The op string.


def test_parse_fills_in_every_argument_and_its_type():
    spec = "pad_crop(4)|\n  flip_lr(1)|color_jitter(0.2, 0.3, saturation=0.4)"
    assert parse(spec) == (
        Op("pad_crop", {"padding": 4, "mode": "constant"}),
        Op("flip_lr", {"probability": 1.0}),
        Op("color_jitter", {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.0}),
    )
    assert type(parse("flip_lr(1)")[0].arguments["probability"]) is float
    fill = parse("rotate(15)")[0].arguments["fill"], parse("rotate(15, fill='edge')")[0].arguments["fill"]
    assert fill == (0.0, "edge")


def test_brackets_do_not_change_the_order():
    assert parse("hue(0.1)|(hue(0.2)|hue(0.3))") == parse("(hue(0.1)|hue(0.2))|hue(0.3)")


def test_usage_shows_names_and_defaults():
    assert usage("pad_crop", OPS["pad_crop"]) == "pad_crop(padding, mode='constant')"


BAD_STRINGS = {
    # does not parse: the place
    "flip_lr(0.5": "flip_lr>>>here<<<(0.5",
    "flip_lr(0.5)|": ">>>here<<<|",
    "flip_lr(0.5)||hue(0.1)": "flip_lr(0.5)|>>>here<<<|hue(0.1)",
    "flip_lr(0.5) hue(0.1)": "flip_lr(0.5) >>>here<<<hue(0.1)",
    "hue(0.1)|\n\tflip_lr(": "hue(0.1)|  flip_lr>>>here<<<(",
    "hue(0.1) # |flip_lr(0.5)": "'#' cannot be part of an op string: hue(0.1) >>>here<<<#",
    "flip_lr(0.5)\0": "'\\x00' cannot be part",
    "flíp_lr(0.5)": "'\\xed' cannot be part of an op string: fl>>>here<<<",
    "-" * 100_000 + "1": "shorten it",
    # parses, but is no chain of ops
    "flip_lr(0.5)|0.5": "joined by '|': flip_lr(0.5)|>>>here<<<0.5",
    "flip_lr(0.5), hue(0.1)": "joined by '|': >>>here<<<",
    "flip_lr(0.5) + hue(0.1)": "joined by '|': >>>here<<<",
    "np.flip(0.5)": "joined by '|': >>>here<<<",
    # unknown op
    "hue(0.1)|flip_rl(0.5)": "unknown augmentation op 'flip_rl'; did you mean 'flip_lr'? known: alternating_flip,",
    # arguments: the signature
    "flip_lr": "write flip_lr(probability): flip_lr>>>here<<<",
    "flip_lr()|hue(0.1)": "'probability'; write flip_lr(probability): flip_lr()>>>here<<<|hue(0.1)",
    "flip_lr(0.5, 0.5)": "too many positional arguments; write flip_lr(probability)",
    "flip_lr(0.5, p=1)": "'p'; write flip_lr(probability)",
    "flip_lr(0.5, probability=0.5)": "multiple values for argument 'probability'; write flip_lr(probability)",
    "flip_lr(probability=0.1, probability=0.2)": "the same keyword argument twice; write flip_lr(probability)",
    "flip_lr(**{'probability': 0.5})": "write flip_lr(probability)",
    "color_jitter(0.1, 0.1)": "write color_jitter(brightness, contrast, saturation, hue=0.0)",
    # values: the range
    "flip_lr(1.5)": "probability must be a number in [0, 1]; got 1.5",
    "flip_lr(-0.1)": "probability must be a number in [0, 1]; got -0.1",
    "flip_lr(True)": "probability must be a number in [0, 1]; got True",
    "flip_lr('0.5')": "probability must be a number in [0, 1]; got '0.5'",
    "flip_lr(*[0.5])": "probability must be a number in [0, 1]; got *[0.5]",
    "flip_lr(open('x'))": "probability must be a number in [0, 1]; got open('x')",
    "brightness(-0.2)": "strength must be a number of at least 0; got -0.2",
    "brightness(1e999)": "strength must be a number of at least 0; got 1e999",
    "contrast(0.1j)": "strength must be a number of at least 0; got 0.1j",
    "saturation(None)": "strength must be a number of at least 0; got None",
    "hue(0.7)": "strength must be a number in [0, 0.5]; got 0.7",
    "color_jitter(0.1, 0.1, 0.1, 0.7)": "hue must be a number in [0, 0.5]; got 0.7",
    "pad_crop(-1)": "padding must be a whole number of at least 0; got -1",
    "pad_crop(4.0)": "padding must be a whole number of at least 0; got 4.0",
    "pad_crop(4, mode='wrap')": "mode must be one of 'constant', 'reflect'; got 'wrap'",
    "pad_crop(4, mode='reflct')": "mode must be one of 'constant', 'reflect' (did you mean 'reflect'?); got 'reflct'",
    "cutout(4, fill=2)": "fill must be a number in [0, 1]; got 2",
    "rotate(181)": "degrees must be a number in [0, 180]; got 181",
    "rotate(15, fill=1.5)": "fill must be a number in [0, 1] or one of 'edge', 'reflect'; got 1.5",
    "rotate(15, fill='wrap')": "fill must be a number in [0, 1] or one of 'edge', 'reflect'; got 'wrap'",
    "autoaugment('mnist')": "table must be one of 'cifar10', 'imagenet', 'svhn'; got 'mnist'",
    "randaugment(2, 11)": "magnitude must be a number in [0, 10]; got 11; write randaugment(num_ops, magnitude, fill",
    "posterize(0.5, 9)": "bits must be a whole number in [1, 8]; got 9",
    "pad_crop(4, mode='a\\n')": "mode must be one of 'constant', 'reflect'; got 'a\\n'",
}


@pytest.mark.parametrize("spec", BAD_STRINGS, ids=lambda spec: ascii(spec[:40]))
def test_a_bad_string_is_one_line_with_place_or_cure(spec):
    with pytest.raises(ConfigError) as caught:
        make_augment(spec)
    message = str(caught.value)
    assert BAD_STRINGS[spec] in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("spec", [None, 4, ("flip_lr(0.5)",)])
def test_what_is_not_a_string_is_refused(spec):
    with pytest.raises(ConfigError, match="augment must be a string"):
        parse(spec)


def test_parsing_touches_no_device():
    # With a platform that does not exist, the first touch of a device raises.
    code = "from linseed.trainer.data.augment import make_augment, parse; parse('hue(0.1)'); make_augment('hue(0.1)')"
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
