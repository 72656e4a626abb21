import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from linseed.trainer.data.augment import OPS, make_augment, parse
from linseed.trainer.data.augment.geometry import pad_crop
from linseed.trainer.data.augment.warp import Warp, cropping, lens, projection, rotation, scaling, shearing, translation
from linseed.trainer.data.augment.warp import resample as resample_now
from linseed.trainer.errors import ConfigError

HEIGHT, WIDTH = 60, 80
WARPS = sorted(name for name, op in OPS.items() if hasattr(op, "draw"))
SETTINGS = {
    "lens_distortion": "0.3",
    "perspective": "0.5",
    "random_resized_crop": "0.3",
    "rotate": "30",
    "scale": "0.5",
    "shear": "0.3",
    "stretch": "0.5",
    "translate": "0.2",
}

resample = jax.jit(resample_now, static_argnames="fill")


@functools.cache
def photograph(name="china.jpg"):
    """uint8 [60, 80, 3]: a real photograph, made small."""
    return np.asarray(Image.fromarray(load_sample_image(name)).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def unit(image):
    return np.asarray(image, np.float32) / 255


@functools.cache
def noise(height=6, width=8):
    return np.random.default_rng(0).random((height, width, 3), np.float32)


def many_keys(number=1000):
    return jax.random.split(jax.random.key(2), number)


def pillow_coefficients(warp, *, shape):
    """The warp in Pillow's coordinates, whose origin is the corner of the image: 8 numbers."""
    centre = np.array([[1, 0, shape[1] / 2], [0, 1, shape[0] / 2], [0, 0, 1]])
    matrix = centre @ np.asarray(warp.matrix, np.float64) @ np.linalg.inv(centre)
    return (matrix / matrix[2, 2]).reshape(-1)[:8]


def mean_error_inside(ours, pillow, *, coefficients):
    """Mean difference in grey levels over the points that are read at least a pixel inside the image."""
    a, b, c, d, e, f, g, h = coefficients
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    w = g * x + h * y + 1
    column, row = (a * x + b * y + c) / w, (d * x + e * y + f) / w
    inside = (column > 1) & (column < WIDTH - 1) & (row > 1) & (row < HEIGHT - 1)
    assert inside.mean() > 0.3
    return np.abs(np.asarray(ours) * 255 - np.asarray(pillow, np.float32))[inside].mean()


# Against Pillow.


AFFINE = {
    "rotate": [rotation(20.0)],
    "turn around": [rotation(180.0)],
    "translate": [translation(7.3, -4.6)],
    "scale": [scaling(1.4, 1.4)],
    "stretch": [scaling(0.8, 1.25)],
    "shear": [shearing(0.3, -0.2)],
    "crop": [cropping(10.5, 7.0, 30.0, 44.0, shape=(HEIGHT, WIDTH))],
    "chain": [rotation(-15.0), shearing(0.1, 0.2), scaling(1.1, 0.9), translation(5.0, 3.5)],
}


@pytest.mark.parametrize("picture", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("name", sorted(AFFINE))
def test_affine_warps_agree_with_pillow(name, picture):
    warps = AFFINE[name]
    composed = Warp(functools.reduce(np.matmul, [np.asarray(warp.matrix) for warp in warps]))
    coefficients = pillow_coefficients(composed, shape=(HEIGHT, WIDTH))
    image = Image.fromarray(photograph(picture))
    theirs = image.transform(image.size, Image.Transform.AFFINE, coefficients[:6], Image.Resampling.BILINEAR)
    ours = resample(unit(image), warps, fill=0.0)
    assert mean_error_inside(ours, theirs, coefficients=coefficients) < 1.0


@pytest.mark.parametrize("picture", ["china.jpg", "flower.jpg"])
def test_projections_agree_with_pillow(picture):
    corners = jnp.array([[-30.0, -25.0], [38.0, -20.0], [28.0, 29.0], [-35.0, 22.0]])
    warp = projection(corners, shape=(HEIGHT, WIDTH))
    coefficients = pillow_coefficients(warp, shape=(HEIGHT, WIDTH))
    image = Image.fromarray(photograph(picture))
    theirs = image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    ours = resample(unit(image), [warp], fill=0.0)
    assert mean_error_inside(ours, theirs, coefficients=coefficients) < 1.0


@pytest.mark.parametrize("degrees", [-40.0, 12.0, 90.0])
def test_rotation_is_counter_clockwise_as_in_pillow(degrees):
    image = Image.fromarray(photograph())
    theirs = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR), np.float32)
    ours = np.asarray(resample(unit(image), [rotation(degrees)], fill=0.0)) * 255
    both = (theirs.max(axis=-1) > 0) & (ours.max(axis=-1) > 0)
    assert both.mean() > 0.5 and np.abs(ours - theirs)[both].mean() < 1.0


def test_crop_is_pillows_resize_of_a_box():
    # Enlarged bilinearly, so that no filter is wider than one pixel. A box of whole pixels, read half a pixel inside.
    box = (7, 10, 47, 40)
    theirs = Image.fromarray(photograph()).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)
    warp = cropping(10, 7, 30, 40, shape=(HEIGHT, WIDTH))
    ours = np.asarray(resample(unit(photograph()), [warp], fill=0.0)) * 255
    assert np.abs(ours - np.asarray(theirs, np.float32))[1:-1, 1:-1].mean() < 1.0


# Warps.


def test_projection_moves_the_corners_where_it_is_told():
    corners = np.array([[-3.5, -2.0], [3.0, -2.8], [4.0, 2.5], [-2.0, 3.0]])
    matrix = np.asarray(projection(jnp.array(corners), shape=(6, 8)).matrix, np.float64)
    x, y, w = matrix @ np.column_stack([corners, np.ones(4)]).T
    np.testing.assert_allclose(np.column_stack([x / w, y / w]), [[-4, -3], [4, -3], [4, 3], [-4, 3]], atol=1e-4)


def test_beyond_the_horizon_of_a_projection_lies_what_is_before_it():
    # A plane that runs away upwards: above its horizon, where the formula comes back from below, is still the top edge.
    corners = jnp.array([[-3.0, 0.0], [3.0, 0.0], [30.0, 30.0], [-30.0, 30.0]])
    warp = projection(corners, shape=(60, 60))
    y, x = np.mgrid[:60, :60] - 29.5
    beyond = np.asarray(warp.matrix)[2, 0] * x + np.asarray(warp.matrix)[2, 1] * y + np.asarray(warp.matrix)[2, 2] < 0
    rows = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (60, 60, 1))
    out = np.asarray(resample(rows, [warp], fill="edge"))
    assert beyond[:20].all() and not beyond[30:].any()
    assert (out[beyond] == 0).all() and out.max() > 58


@pytest.mark.parametrize("k", [-0.3, -0.1, 0.1, 0.3])
def test_lens_is_browns_radial_term(k):
    # Columns of an image that holds its own x, y are what each point was read from.
    height, width = 40, 60
    y, x = np.mgrid[:height, :width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    out = np.asarray(resample(np.stack([x, y], axis=-1).astype(np.float32), [lens(k)], fill=1e6))
    magnify = 1 + k * (x**2 + y**2) / (height**2 / 4 + width**2 / 4)
    expected = np.stack([x * magnify, y * magnify], axis=-1)
    inside = (np.abs(expected) < np.array([width / 2 - 0.5, height / 2 - 0.5])).all(axis=-1)
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-3)
    assert (out[0, 0] == 1e6).all() == (k > 0)  # a barrel draws the corners in, a pincushion cuts them off


def test_a_pincushion_never_folds_over():
    # Read through a shrunken image, far beyond the corner. Without care its outside would show the image again.
    x = np.broadcast_to(np.arange(41, dtype=np.float32)[None, :, None] - 20, (41, 41, 1))
    row = np.asarray(resample(x, [lens(-0.3), scaling(0.25, 0.25)], fill=1e6))[20, :, 0]
    seen = np.flatnonzero(row < 1e6)
    assert (np.diff(seen) == 1).all() and seen.size < 20 and (np.diff(row[seen]) > 0).all()


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_right_angles_are_numpys_rot90(degrees):
    square = noise(8, 8)
    out = resample(square, [rotation(degrees)], fill=0.0)
    np.testing.assert_allclose(out, np.rot90(square, int(degrees) // 90), atol=1e-5)


def test_whole_pixels_are_exact():
    out = np.asarray(resample(noise(), [translation(2.0, -1.0)], fill=0.25))
    np.testing.assert_array_equal(out[:-1, 2:], noise()[1:, :-2])
    assert (out[-1] == 0.25).all() and (out[:, :2] == 0.25).all()


def test_a_chain_is_one_resampling_of_the_composed_matrix():
    warps = [rotation(10.0), shearing(0.2, 0.0), lens(0.0), translation(3.0, 1.0), scaling(1.2, 0.9)]
    composed = functools.reduce(np.matmul, [np.asarray(warp.matrix) for warp in warps])
    image = unit(photograph())
    one = np.asarray(resample(image, [Warp(jnp.array(composed))], fill=0.5))
    np.testing.assert_allclose(resample(image, warps, fill=0.5), one, atol=1e-3)


@pytest.mark.parametrize(("fill", "mode"), [("edge", "edge"), ("reflect", "reflect"), (0.25, "constant")])
def test_fill_is_numpys_padding(fill, mode):
    values = {"constant_values": 0.25} if mode == "constant" else {}
    expected = np.pad(noise(), ((3, 0), (0, 4), (0, 0)), mode=mode, **values)[:6, 4:]
    np.testing.assert_allclose(resample(noise(), [translation(-4.0, 3.0)], fill=fill), expected, atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, "edge", "reflect"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 1), (5, 1, 3)])
def test_thin_images_are_finite(shape, fill):
    image = np.random.default_rng(0).random(shape, np.float32)
    out = np.asarray(resample(image, [rotation(30.0), lens(0.2), translation(9.0, 9.0)], fill=fill))
    assert out.shape == shape and np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(resample(image, [], fill=fill), image)


# In the op string.


def gathers(spec):
    """How often a chain reads pixels of an image by index: four times for each resampling."""
    augment = make_augment(spec)
    keys, images = jax.random.split(jax.random.key(0), 2), np.zeros((2, 6, 8, 3), np.float32)
    jaxpr = str(jax.make_jaxpr(augment)(keys, images))
    return jaxpr.count("name=_take")


def test_neighbouring_warps_resample_once():
    once = gathers("rotate(15)")
    assert once == 4
    assert gathers("rotate(15)|shear(0.1)|translate(0.1)|scale(0.1)|lens_distortion(0.1)|perspective(0.2)") == once
    assert gathers("rotate(15)|brightness(0.1)|shear(0.1)") == 2 * once  # what stands between sees the pixels
    assert gathers("rotate(15)|shear(0.1, fill=0.5)") == 2 * once  # which of the two fills would it be?
    assert gathers("rotate(15, fill='edge')|shear(0.1, fill='edge')") == once
    assert gathers("flip_lr(0.5)|flip_ud(0.5)|pad_crop(2)") < once  # whole pixels


def test_a_chain_of_warps_is_its_draws_composed():
    spec = "rotate(15)|lens_distortion(0.3)|shear(0.1)|translate(0.1)"
    key, image = jax.random.key(5), unit(photograph())
    draws = [
        OPS[op.name].draw(
            jax.random.fold_in(key, position),
            image.shape,
            **{name: value for name, value in op.arguments.items() if name != "fill"},
        )
        for position, op in enumerate(parse(spec))
    ]
    out = jax.jit(make_augment(spec))(key[None], image[None])[0]
    np.testing.assert_allclose(out, resample(image, draws, fill=0.0), atol=1e-3)


def test_a_chain_of_warps_is_sharper_than_its_ops_one_by_one():
    image = unit(photograph())
    there_and_back = [rotation(7.0), translation(0.5, 0.5), translation(-0.5, -0.5), rotation(-7.0)]
    once = np.asarray(resample(image, there_and_back, fill="edge"))
    often = functools.reduce(lambda image, warp: resample(image, [warp], fill="edge"), there_and_back, image)
    inner = np.s_[20:40, 20:60]
    assert np.abs(once - image)[inner].mean() < 1e-3 < 0.01 < np.abs(np.asarray(often) - image)[inner].mean()


def test_every_warp_has_a_setting_here():
    assert sorted(SETTINGS) == WARPS


@pytest.mark.parametrize("name", WARPS)
def test_a_warp_alone_and_in_a_chain_draw_the_same(name):
    [op] = parse(f"{name}({SETTINGS[name]}, fill='edge')")
    key, image = jax.random.key(3), unit(photograph())
    alone = jax.jit(lambda key: OPS[name](jax.random.fold_in(key, 0), image, **op.arguments))(key)
    chain = jax.jit(make_augment(f"{name}({SETTINGS[name]}, fill='edge')"))(key[None], image[None])[0]
    np.testing.assert_allclose(chain, alone, atol=1e-5)
    assert np.abs(np.asarray(alone) - image).max() > 0.01


# The draws.


def draw(name, *, shape=(HEIGHT, WIDTH, 3), number=1000, **arguments):
    one = functools.partial(OPS[name].draw, shape=shape, **arguments)
    warps = jax.jit(jax.vmap(lambda key: one(key)))(many_keys(number))
    return np.asarray(warps.matrix, np.float64), warps.radial


def even(values, low, high):
    tenths, _ = np.histogram(values, bins=10, range=(low, high))
    assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
    return tenths.min() > 60 and tenths.max() < 140  # of 1000: 100 expected, standard deviation 9.5


def test_draws_fill_their_ranges_evenly():
    rotations, _ = draw("rotate", degrees=30.0)
    assert even(np.degrees(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])), -30, 30)
    shifts, _ = draw("translate", fraction=0.25)
    assert even(-shifts[:, 0, 2], -0.25 * WIDTH, 0.25 * WIDTH) and even(-shifts[:, 1, 2], -0.25 * HEIGHT, 0.25 * HEIGHT)
    shears, _ = draw("shear", strength=0.3)
    assert even(shears[:, 0, 1], -0.3, 0.3) and even(shears[:, 1, 0], -0.3, 0.3)
    scales, _ = draw("scale", strength=0.5)
    assert even(-np.log(scales[:, 0, 0]), -math.log(1.5), math.log(1.5))
    np.testing.assert_array_equal(scales[:, 0, 0], scales[:, 1, 1])
    stretches, _ = draw("stretch", strength=0.5)
    assert even(np.log(stretches[:, 1, 1] / stretches[:, 0, 0]), -math.log(1.5), math.log(1.5))
    for kind, low, high in [("both", -0.2, 0.2), ("barrel", 0.0, 0.2), ("pincushion", -0.2, 0.0)]:
        assert even(np.asarray(draw("lens_distortion", strength=0.2, kind=kind)[1]), low, high)


@pytest.mark.parametrize("name", ["rotate", "shear", "stretch"])
def test_turns_shears_and_stretches_keep_areas(name):
    [op] = parse(f"{name}(0.7)")
    arguments = {key: value for key, value in op.arguments.items() if key != "fill"}
    np.testing.assert_allclose(np.linalg.det(draw(name, number=50, **arguments)[0]), 1.0, atol=1e-5)


def test_perspective_moves_every_corner_inwards_within_its_range():
    matrices, _ = draw("perspective", strength=0.5)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * [WIDTH, HEIGHT]
    moved = np.linalg.inv(matrices) @ np.column_stack([corners, np.ones(4)]).T
    moved = np.moveaxis(moved[:, :2] / moved[:, 2:], 1, 2)
    inwards = (corners - moved) * np.sign(corners) / [WIDTH, HEIGHT]
    for corner in range(4):
        for axis in range(2):
            assert even(inwards[:, corner, axis], 0.0, 0.25)


def test_resized_crop_lies_inside_and_has_the_drawn_areas_and_shapes():
    matrices, _ = draw("random_resized_crop", min_area=0.1, max_aspect=4 / 3)
    width, height = WIDTH * matrices[:, 0, 0], HEIGHT * matrices[:, 1, 1]
    left, top = WIDTH / 2 + matrices[:, 0, 2] - width / 2, HEIGHT / 2 + matrices[:, 1, 2] - height / 2
    assert left.min() > -1e-3 and (left + width).max() < WIDTH + 1e-3
    assert top.min() > -1e-3 and (top + height).max() < HEIGHT + 1e-3
    assert even(np.log(width / height)[width * height < 0.5 * WIDTH * HEIGHT].repeat(2)[:1000], -0.288, 0.288)
    areas = width * height / (WIDTH * HEIGHT)
    assert 0.1 - 1e-4 < areas.min() < 0.12 and 0.9 < areas.max() <= 1 + 1e-4
    assert np.std(left / np.maximum(WIDTH - width, 1)) > 0.2


@pytest.mark.parametrize(
    ("shape", "window"), [((60, 80, 3), (60, 80)), ((30, 90, 3), (30, 40)), ((90, 30, 3), (40, 30))]
)
def test_where_no_drawn_window_fits_the_largest_in_the_middle_is_taken(shape, window):
    matrices, _ = draw("random_resized_crop", shape=shape, number=3, min_area=1.0, max_aspect=4 / 3)
    np.testing.assert_allclose(matrices[:, 1, 1] * shape[0], window[0], rtol=1e-5)
    np.testing.assert_allclose(matrices[:, 0, 0] * shape[1], window[1], rtol=1e-5)
    np.testing.assert_allclose(matrices[:, :2, 2], 0.0, atol=1e-4)


# Hidden pixels.


def test_cutout_hides_a_square_around_any_pixel():
    image = np.ones((20, 30, 1), np.float32)
    op = functools.partial(OPS["cutout"], size=7, fill=0.25)
    hidden = np.asarray(jax.jit(jax.vmap(op, (0, None)))(many_keys(), image))[..., 0] == 0.25
    rows, columns = hidden.any(axis=2), hidden.any(axis=1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])
    assert rows.sum(axis=1).max() == columns.sum(axis=1).max() == 7
    assert rows.sum(axis=1).min() == columns.sum(axis=1).min() == 4  # centred on a corner
    assert (hidden.mean(axis=0) > 0).all()


def test_random_erasing_hides_a_rectangle_of_the_drawn_area_and_shape():
    image = np.full((40, 60, 1), 2.0, np.float32)
    op = functools.partial(OPS["random_erasing"], probability=0.5, max_area=0.4, max_aspect=10 / 3, fill="noise")
    out = np.asarray(jax.jit(jax.vmap(op, (0, None)))(many_keys(), image))[..., 0]
    hidden = out != 2.0
    assert 420 < hidden.any(axis=(1, 2)).sum() < 560  # of 1000, a few of the boxes do not fit
    hidden, out = hidden[hidden.any(axis=(1, 2))], out[hidden.any(axis=(1, 2))]
    heights, widths = hidden.any(axis=2).sum(axis=1), hidden.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), heights * widths)
    areas = hidden.mean(axis=(1, 2))
    assert 0.015 < areas.min() < 0.03 and 0.38 < areas.max() < 0.42
    assert 0.27 < (heights / widths).min() < 0.4 and 2.5 < (heights / widths).max() < 3.7
    levels = out[hidden]
    assert 0 <= levels.min() < 0.01 and 0.99 < levels.max() <= 1 and abs(levels.mean() - 0.5) < 0.01


# Whole pixels.


@pytest.mark.parametrize(("name", "axis"), [("flip_lr", 1), ("flip_ud", 0)])
def test_flips_mirror_one_axis_with_the_given_probability(name, axis):
    image = noise()
    flips = jax.jit(jax.vmap(lambda key, image, p: OPS[name](key, image, probability=p), (0, None, None)))
    for probability, low, high in [(0.0, 0, 0), (0.25, 190, 310), (1.0, 1000, 1000)]:
        out = np.asarray(flips(many_keys(), image, probability))
        mirrored = (out == np.flip(image, axis=axis)).all(axis=(1, 2, 3))
        assert (mirrored | (out == image).all(axis=(1, 2, 3))).all()
        assert low <= mirrored.sum() <= high


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_crop_is_a_window_of_the_padded_image_and_every_offset_occurs(mode):
    image, padding = noise(), 2
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    offsets = range(2 * padding + 1)
    windows = {padded[r : r + 6, c : c + 8].tobytes(): (r, c) for r in offsets for c in offsets}
    assert len(windows) == 25
    draw = functools.partial(OPS["pad_crop"], padding=padding, mode=mode)
    out = jax.jit(jax.vmap(draw, (0, None)))(many_keys(), image)
    seen = [windows[one.tobytes()] for one in np.asarray(out)]  # a KeyError: not a window
    counts = np.bincount([5 * r + c for r, c in seen], minlength=25)
    assert counts.min() > 12 and counts.max() < 75  # 40 expected, standard deviation 6


def test_pad_crop_in_the_middle_is_the_identity():
    np.testing.assert_array_equal(pad_crop(noise(), (3, 3), padding=3, mode="constant"), noise())


def test_pad_crop_pads_with_zeros_unless_told():
    assert parse("pad_crop(2)") == parse("pad_crop(2, mode='constant')") == parse("pad_crop(2, 'constant')")
    images = np.stack([noise() * 0.5 + 0.5] * 16)
    assert np.min(jax.jit(make_augment("pad_crop(2)"))(many_keys(16), images)) == 0.0
    assert np.min(jax.jit(make_augment("pad_crop(2, mode='reflect')"))(many_keys(16), images)) >= 0.5


def test_padding_as_large_as_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"pad_crop\(6\).*smaller than the image, which is 6x8"):
        jax.eval_shape(make_augment("pad_crop(6)"), many_keys(1), noise()[None])
