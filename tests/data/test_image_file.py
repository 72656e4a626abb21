"""Files that would take minutes to decode are refused, and sound files of the same kind are read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from linseed.trainer.data.decode import decode_image, why_bad
from linseed.trainer.data.image_file import FORMATS, opened

RNG = np.random.default_rng(0)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(side=8):
    return Image.new("RGB", (side, side), (9, 99, 200))


def scans_again(data, times):
    """A progressive JPEG whose last scan comes `times` times more."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * times + data[-2:]


def behind_jpeg_head(data, junk):
    return data[:2] + junk + data[2:]


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_png_chunks(data, count):
    return data[:33] + png_chunk(b"teSt", b"") * count + data[33:]


def with_gif_comment(data, blocks):
    at = data.index(b",", 13)
    return data[:at] + b"!\xfe" + b"\1x" * blocks + b"\0" + data[at:]


# {what: a file that is refused, and one with less of the same that is read}
COSTLY = {
    "scans of a JPEG": (
        lambda: scans_again(encoded(flat(4000), "JPEG", progressive=True), 100),
        lambda: scans_again(encoded(flat(400), "JPEG", progressive=True), 100),
    ),
    "segments of a JPEG": (
        lambda: behind_jpeg_head(encoded(flat(), "JPEG"), b"\xff\xfe\0\2" * 20_000),
        lambda: behind_jpeg_head(encoded(flat(), "JPEG"), b"\xff\xfe\0\2" * 200),
    ),
    "padding of a JPEG": (
        lambda: behind_jpeg_head(encoded(flat(), "JPEG"), b"\xff" * 100_000),
        lambda: behind_jpeg_head(encoded(flat(), "JPEG"), b"\xff" * 100),
    ),
    "comment of a PPM": (
        lambda: b"P6 #" + b"x" * 300_000 + b"\n2 2 255 " + bytes(12),
        lambda: b"P6 #" + b"x" * 3000 + b"\n2 2 255 " + bytes(12),
    ),
    "comments of a plain PPM": (
        lambda: b"P3 2 2 255 " + b"#\n" * 1001 + b"1 " * 12,
        lambda: b"P3 2 2 255 " + b"#\n" * 900 + b"1 " * 12,
    ),
    "values of a plain PPM": (lambda: b"P2 5000 5000 255 1", lambda: b"P2 5 5 255 " + b"1 " * 25),
    "values of a PPM to be scaled": (lambda: b"P5 5000 5000 254 1", lambda: b"P5 50 50 254 " + bytes(2500)),
    "chunks of a PNG": (
        lambda: with_png_chunks(encoded(flat(), "PNG"), 20_000),
        lambda: with_png_chunks(encoded(flat(), "PNG"), 500),
    ),
    "comment of a GIF": (
        lambda: with_gif_comment(encoded(flat(), "GIF"), 20_000),
        lambda: with_gif_comment(encoded(flat(), "GIF"), 500),
    ),
}


@pytest.mark.parametrize("what", COSTLY)
def test_a_file_that_would_take_minutes_is_refused(what):
    refused, read = (make() for make in COSTLY[what])
    with pytest.raises(ValueError, match="too long|too slow|comments"):
        decode_image(io.BytesIO(refused), image_size=8)
    assert decode_image(io.BytesIO(read), image_size=2).shape == (2, 2, 3)


def test_a_run_length_bmp_is_read_and_one_without_end_is_not():
    head = b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54 + 1024, 40, 4, 2, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    sound = head + b"\4\0\0\0" * 2 + b"\0\1"
    assert decode_image(io.BytesIO(sound), image_size=0).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="too long"):
        decode_image(io.BytesIO(head + b"\0\2\0\0" * 10**6), image_size=0)


def test_sound_files_with_as_much_beside_their_pixels_as_cameras_write_are_read():
    noise = Image.fromarray(RNG.integers(0, 256, (600, 800, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    for format in FORMATS:
        data = encoded(noise, format, **({"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}))
        assert decode_image(io.BytesIO(data), image_size=0).shape == (600, 800, 3)
    png = encoded(noise, "PNG")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(noise)))
    pieces = b"".join(png_chunk(b"IDAT", body[i : i + 1024]) for i in range(0, len(body), 1024))
    data = png[:33] + pieces + png[-12:]
    np.testing.assert_array_equal(decode_image(io.BytesIO(data), image_size=0), np.asarray(noise))


@pytest.mark.parametrize(
    "head, name",
    [
        (b"", "an empty file"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, head, name):
    (tmp_path / "a.jpg").write_bytes(head and head + bytes(100))
    with pytest.raises(OSError) as caught, opened(str(tmp_path / "a.jpg")):
        pass
    assert name in why_bad(caught.value) and ("convert it to PNG or JPEG" in why_bad(caught.value)) == bool(head)
