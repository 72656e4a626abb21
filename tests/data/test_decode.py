import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from linseed.trainer.data.decode import (
    FITS,
    INTERPOLATIONS,
    PLAIN,
    Conversion,
    decode_as_it_is,
    decode_image,
    decode_random_crop,
    decode_square,
    random_box,
)
from linseed.trainer.data.image_file import FORMATS, MAX_PIXELS

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def encoded(pixels_or_image, format="PNG", **options):
    image = pixels_or_image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format=format, **options)
    file.seek(0)
    return file


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM"])
def test_lossless_formats_give_the_pixels_back(format):
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(decode_image(encoded(pixels, format), image_size=0), pixels)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("image_size", [0, 6])
def test_every_format_gives_uint8_rgb(format, image_size):
    flat = np.full((8, 12, 3), 200, np.uint8)
    found = decode_image(encoded(flat, format), image_size=image_size)
    assert found.dtype == np.uint8
    assert found.shape == ((6, 6, 3) if image_size else (8, 12, 3))
    np.testing.assert_allclose(found.astype(int), 200, atol=3)


def test_a_format_outside_the_list_is_refused():
    with pytest.raises(OSError):
        decode_image(encoded(noise(4, 4, 3), "TIFF"), image_size=0)


def test_grey_fills_the_three_channels():
    grey = noise(4, 4)
    np.testing.assert_array_equal(decode_image(encoded(grey), image_size=0), np.repeat(grey[..., None], 3, axis=-1))


def test_16_bit_grey_is_scaled_and_not_clipped():
    grey = np.array([[0, 257, 256 * 128, 65535]], np.uint16)
    found = decode_image(encoded(Image.fromarray(grey)), image_size=0)
    np.testing.assert_array_equal(found[0, :, 0], np.round(grey[0] / 257))


def test_palette_keeps_its_colours():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0], pixels[1, 1] = (255, 0, 0), (0, 0, 255)
    image = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode_image(encoded(image), image_size=0), pixels)


def test_transparent_pixels_are_laid_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 100, (0, 255, 128)
    found = decode_image(encoded(pixels), image_size=0)[0]
    np.testing.assert_array_equal(found[0], [255, 255, 255])
    np.testing.assert_array_equal(found[1], [100, 0, 0])
    np.testing.assert_allclose(found[2], [177, 127, 127], atol=1)


def test_transparent_palette_entry_is_laid_on_white():
    image = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    found = decode_image(encoded(image, transparency=image.getpixel((0, 0))), image_size=0)
    np.testing.assert_array_equal(found, np.full((2, 2, 3), 255))


def test_exif_orientation_is_applied():
    pixels = noise(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned 90 degrees clockwise.
    np.testing.assert_array_equal(decode_image(encoded(pixels, exif=exif), image_size=0), np.rot90(pixels, -1))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(file, image_size=0), np.full((4, 4, 3), 10))


@pytest.mark.parametrize("shape", [(20, 48), (48, 20)])
def test_resizing_is_by_the_shorter_side_and_then_to_the_centre_square(shape):
    pixels = noise(*shape, 3)
    whole = Image.fromarray(pixels).resize((shape[1] // 2, shape[0] // 2), Image.Resampling.BILINEAR)
    left, top = ((side - 10) // 2 for side in whole.size)
    expected = np.asarray(whole)[top : top + 10, left : left + 10].astype(int)
    np.testing.assert_allclose(decode_image(encoded(pixels), image_size=10).astype(int), expected, atol=1)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode_image(encoded(stripes), image_size=8)
    np.testing.assert_allclose(found[:, 1:-1].astype(int), 127, atol=4)


def test_the_right_size_is_left_untouched():
    pixels = noise(9, 9, 3)
    np.testing.assert_array_equal(decode_image(encoded(pixels), image_size=9), pixels)


def test_a_large_jpeg_is_shrunk_to_nearly_the_same_pixels_as_without_the_decoders_help():
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (480, 1))] * 3, axis=-1)
    jpeg, png = (decode_image(encoded(pixels, name), image_size=32).astype(int) for name in ("JPEG", "PNG"))
    np.testing.assert_allclose(jpeg, png, atol=4)


def crop_of(file, *, image_size, seed=0):
    return decode_random_crop(file, image_size=image_size, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_crop_is_cut_from_what_the_whole_image_is_decoded_to(format, mode):
    if (format, mode) == ("PNG", "CMYK"):
        pytest.skip("PNG has no CMYK")
    ramp = np.linspace(0, 255, 40)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 90), -1).astype(np.uint8)
    file = encoded(Image.fromarray(pixels).convert(mode), format)
    whole = Image.fromarray(decode_image(file, image_size=0))
    for seed in range(5):
        box = random_box(40, 40, rng=np.random.default_rng(seed))
        expected = np.asarray(whole.resize((24, 24), Image.Resampling.BILINEAR, box=box))
        file.seek(0)
        np.testing.assert_allclose(crop_of(file, image_size=24, seed=seed).astype(int), expected, atol=6)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_crop_that_shrinks_averages_instead_of_skipping_pixels(format):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    for seed in range(5):
        found = crop_of(encoded(stripes, format, quality=95, subsampling=0), image_size=16, seed=seed)
        np.testing.assert_allclose(found[:, 1:-1].astype(int), 127, atol=16)


def test_a_crop_of_a_jpeg_that_was_cut_off_raises():
    whole = encoded(noise(64, 64, 3), "JPEG").getvalue()
    with pytest.raises(OSError, match="truncated"):
        crop_of(io.BytesIO(whole[: len(whole) // 2]), image_size=16)


def test_the_fast_decoder_reads_nothing_that_claims_another_size_than_was_checked(monkeypatch):
    file = encoded(noise(64, 64, 3), "JPEG")
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda data: (65500, 65500, "RGB", "420"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kwargs: pytest.fail("it was read"))
    assert crop_of(file, image_size=16).shape == (16, 16, 3)


def test_a_decompression_bomb_raises_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("linseed.trainer.data.image_file.MAX_PIXELS", 100)
    assert decode_image(encoded(noise(10, 10, 3)), image_size=0).shape == (10, 10, 3)
    with pytest.raises(Image.DecompressionBombError, match="11x10"):
        decode_image(encoded(noise(10, 11, 3)), image_size=0)


def test_the_limit_is_not_above_the_one_at_which_pillow_warns():
    assert MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


def test_any_damage_raises_or_gives_an_image():
    whole = encoded(noise(16, 16, 3), "PNG").getvalue()
    damaged = 0
    for i in range(0, len(whole), 7):
        content = bytearray(whole)
        content[i] ^= 0xFF
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert decode_image(io.BytesIO(content), image_size=0).dtype == np.uint8
            except Exception:
                damaged += 1
    assert damaged
    with pytest.raises(OSError):
        decode_image(io.BytesIO(whole[: len(whole) // 2]), image_size=0)


WEBP = {
    "VP8X": dict(save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
    "VP8L": dict(lossless=True),
    "VP8 ": dict(lossless=False),
}


def webp_that_claims(kind, side):
    """A small WebP whose header says that it is `side` x `side`."""
    data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "WEBP", **WEBP[kind]).getvalue())
    assert bytes(data[12:16]) == kind.encode()
    if kind == "VP8X":
        data[24:30] = (side - 1).to_bytes(3, "little") * 2
    elif kind == "VP8L":
        data[21:25] = ((side - 1) | (side - 1) << 14 | data[24] >> 4 << 28).to_bytes(4, "little")
    else:
        data[26:30] = side.to_bytes(2, "little") * 2
    return bytes(data)


# The second time room is made where the first was, the heap has to clear it: only then it is memory in use.
PEAK = """
import io, sys
from linseed.scripts.cli import heap
heap.keep()
from linseed.trainer.data.decode import decode_image
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
data, before = sys.stdin.buffer.read(), peak()
for _ in range(4):
    for file in (io.BytesIO(data), sys.argv[1]):
        try:
            decode_image(file, image_size=8)
        except Exception as error:
            said = error
print((peak() - before) // 1024, said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", sorted(WEBP))
def test_a_webp_that_claims_much_takes_no_memory(tmp_path, kind):
    data = webp_that_claims(kind, 9500)
    (tmp_path / "a.webp").write_bytes(data)
    command = [sys.executable, "-c", PEAK, tmp_path / "a.webp"]
    done = subprocess.run(command, cwd=ROOT, input=data, capture_output=True)
    mib, said = done.stdout.decode().split(maxsplit=1)
    assert int(mib) < 100 and "9500x9500 is over the limit" in said, done.stderr


@pytest.mark.parametrize("kind", sorted(WEBP))
@pytest.mark.parametrize("cut", [8, 12, 20, 29])
def test_a_webp_that_was_cut_off_in_its_header_is_none(kind, cut):
    with pytest.raises(OSError):
        decode_image(io.BytesIO(webp_that_claims(kind, 8)[:cut]), image_size=0)
    assert decode_image(io.BytesIO(webp_that_claims(kind, 8)), image_size=0).shape == (8, 8, 3)


@pytest.mark.parametrize("as_path", [True, False])
def test_a_file_with_much_behind_its_image_is_refused_unread(tmp_path, monkeypatch, as_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(8, 8, 3), "JPEG").getvalue())
    with open(path, "ab") as file:
        file.truncate(50 * 2**30)  # with a hole, which takes no disk
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("it was opened"))
    for decode in (decode_image, crop_of):
        with open(path, "rb") as file, pytest.raises(ValueError, match="bytes are over the limit"):
            decode(str(path) if as_path else file, image_size=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation):
    pixels = noise(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(pixels, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(decode_image(file, image_size=0), expected)


def test_damaged_exif_beside_a_sound_orientation_costs_nothing():
    pixels = noise(2, 3, 3)
    # Two entries of a little-endian TIFF: the orientation, and a width that is a fraction.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0100, 10, 1, 38)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + b"\xff" * 30
    file = encoded(pixels, exif=exif)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(file))
    np.testing.assert_array_equal(decode_image(file, image_size=0), np.rot90(pixels, -1))


def test_pixels_as_they_are_stored_are_those_that_are_meant():
    grey, colours = noise(4, 6), noise(4, 6, 3)
    colours[:] = colours[0, 0]
    colours[0, 0] = 7
    alpha = noise(4, 6, 4)
    bits = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    palette = Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE)
    for image, channels, expected in (
        (grey, 1, grey[..., None]),
        (colours, 3, colours),
        (alpha, 4, alpha),
        (bits, 1, np.where(grey > 127, 255, 0)[..., None]),
        (palette, 3, colours),
    ):
        found = decode_as_it_is(encoded(image), channels=channels)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8


@pytest.mark.parametrize(
    "image, format, channels",
    [
        (Image.fromarray(np.array([[300, 65535]], np.uint16)), "PNG", 1),
        (Image.new("P", (3, 3)), "PNG", 1),
        (Image.new("CMYK", (3, 3)), "JPEG", 4),
        (Image.new("L", (3, 3)), "PNG", 3),
        (Image.new("RGBA", (3, 3)), "PNG", 3),
        (Image.new("LA", (3, 3)), "PNG", 2),
    ],
)
def test_pixels_that_are_stored_as_something_else_are_refused(image, format, channels):
    with pytest.raises(ValueError, match=f"{channels} channels of 8 bits are expected"):
        decode_as_it_is(encoded(image, format), channels=channels)


def fitted(pixels, *, fit, image_size=12, resize=12, background="black"):
    how = Conversion(fit=fit, background=background, bits=16)
    return decode_square(encoded(pixels), image_size=image_size, resize=resize, conversion=how)


@pytest.mark.parametrize("resize", [12, 16])
def test_a_square_image_is_the_same_for_every_fit(resize):
    pixels = noise(40, 40, 3)
    crop, *others = (fitted(pixels, fit=fit, resize=resize) for fit in FITS)
    for other in others:
        np.testing.assert_array_equal(other, crop)


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
def test_pad_shows_all_of_an_image_between_bars_of_the_background(shape):
    pixels = noise(*shape, 3)
    small = Image.fromarray(pixels).resize((shape[1] // 4, shape[0] // 4), Image.Resampling.BILINEAR)
    expected = np.zeros((12, 12, 3), np.uint8)
    bar = slice(3, 9)
    expected[(bar, slice(None)) if shape[0] < shape[1] else (slice(None), bar)] = small
    np.testing.assert_array_equal(fitted(pixels, fit="pad"), expected)
    assert (fitted(pixels, fit="pad", background="white")[0, 0] == 255).all()


def test_stretch_shows_all_of_an_image():
    pixels = noise(24, 48, 3)
    expected = Image.fromarray(pixels).resize((12, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted(pixels, fit="stretch"), expected)


def test_a_larger_square_shows_its_centre():
    for fit in ("pad", "stretch"):
        whole = fitted(noise(32, 64, 3) // 2, fit=fit, image_size=16, resize=16)
        assert whole.shape == (16, 16, 3)
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 32:] = 200
    part = fitted(pixels, fit="stretch", image_size=8, resize=16)
    assert (part[:, :3] == 0).all() and (part[:, 5:] == 200).all()
    part = fitted(pixels, fit="pad", image_size=8, resize=16, background="grey")
    assert (part[:, :3] == 0).all() and (part[:, 5:] == 200).all()  # the bars are outside of it


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
@pytest.mark.parametrize("fit", FITS)
def test_the_longest_line_is_an_image_too(shape, fit):
    assert fitted(np.full((*shape, 3), 7, np.uint8), fit=fit).shape == (12, 12, 3)


@pytest.mark.parametrize("bits", range(8, 17))
def test_values_that_use_some_of_16_bits_are_scaled_by_as_many(bits):
    most = 2**bits - 1
    grey = np.array([[0, most // 3, most // 2, most]], np.uint16)
    how = PLAIN._replace(bits=bits)
    found = decode_image(encoded(Image.fromarray(grey)), image_size=0, conversion=how)
    np.testing.assert_allclose(found[0, :, 0], grey[0] * 255.0 / most, atol=0.5)
    colours = np.stack([grey, grey[:, ::-1], np.zeros_like(grey)], axis=-1)
    file = io.BytesIO(cv2.imencode(".png", colours[..., ::-1])[1].tobytes())
    found = decode_image(file, image_size=0, conversion=how)
    np.testing.assert_allclose(found, colours * 255.0 / most, atol=0.5 if bits < 16 else 1)
    file.seek(0)
    crop = decode_random_crop(file, image_size=4, rng=np.random.default_rng(0), conversion=how)
    assert crop.shape == (4, 4, 3)


def test_more_than_the_bits_that_were_named_is_a_bad_image():
    file = encoded(Image.fromarray(np.array([[4096]], np.uint16)))
    with pytest.raises(ValueError, match="holds the value 4096, more than config.data.source.bits=12"):
        decode_image(file, image_size=0, conversion=PLAIN._replace(bits=12))


def test_the_bits_are_those_of_png_files_alone():
    grey = np.array([[0, 257, 65535]], np.uint16)
    how = PLAIN._replace(bits=12)
    found = decode_image(encoded(Image.fromarray(grey), "PPM"), image_size=0, conversion=how)
    np.testing.assert_array_equal(found[0, :, 0], [0, 1, 255])
    eight = noise(3, 3, 3)
    np.testing.assert_array_equal(decode_image(encoded(eight), image_size=0, conversion=how), eight)


@pytest.mark.parametrize("background, value", [("white", 255), ("grey", 128), ("black", 0)])
def test_transparent_pixels_are_laid_on_the_background(background, value):
    how = PLAIN._replace(background=background)
    found = decode_image(encoded(np.zeros((1, 1, 4), np.uint8)), image_size=0, conversion=how)
    np.testing.assert_array_equal(found[0, 0], [value] * 3)


def test_deep_colours_are_turned_upright():
    colours = RNG.integers(0, 4096, (2, 3, 3)).astype(np.uint16)
    data = cv2.imencode(".png", colours[..., ::-1])[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    for at in (33, len(data) - 12):  # before the pixels, and behind them
        file = io.BytesIO(data[:at] + chunk + data[at:])
        found = decode_image(file, image_size=0, conversion=PLAIN._replace(bits=12))
        np.testing.assert_allclose(found, np.rot90(colours * 255.0 / 4095, -1), atol=0.5)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
def test_images_are_resampled_by_the_interpolation_that_is_asked_for(name, fit):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    conversion = PLAIN._replace(fit=fit, interpolation=name)
    found = decode_square(file, image_size=16, resize=16, conversion=conversion)
    assert np.array_equal(found, image.resize((16, 16), INTERPOLATIONS[name]))
