"""Decodes image files, which may come from anyone, to RGB."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from linseed.trainer.errors import DataError, is_passing

# The decoders to try: a short list, as hostile files can attack each one.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

# A small file can claim a size that fills the memory. Pillow warns at this size by default, and raises only at twice as
# much.
MAX_PIXELS = 89_478_485

# Some decoders also read all that follows the image in its file. Two bytes for each of four channels.
_MAX_BYTES_PER_PIXEL = 8

_WEBP_HEAD = 30  # bytes that hold a WebP's size

_EXIF_ORIENTATION = 0x0112
# How to turn an image of each EXIF orientation upright; 1 already is.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that swap width and height

# Pillow's mode by number of channels, and pairs of modes that convert without loss, a bit or a palette index each.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SAYS_THE_SAME = {("1", "L"), ("P", "RGB")}

_JPEG_SHRINKS = (1, 2, 4, 8)  # factors by which JPEG decoders can shrink while decoding, which saves time

_CROP_AREA = (0.08, 1.0)
_CROP_SHAPE = (3 / 4, 4 / 3)
_CROP_TRIES = 10


def decode_image(file: str | BinaryIO, *, image_size: int) -> np.ndarray:
    """Decodes one image file (a path, or a file open in binary mode) to RGB, uint8 [H, W, 3].

    The image is turned upright by its EXIF orientation. Grey and palette images are converted, 16-bit grey is scaled to
    8 bits, transparency is composited onto white, and an animation gives its first frame. With `image_size` > 0 the
    shorter side is resized to it (bilinear, antialiased) and the centre square is cropped; 0 keeps the size. A bad file
    raises whatever its decoder raises: OSError, ValueError, SyntaxError, RuntimeError and others.
    """
    if image_size:
        return decode_centre(file, image_size=image_size, resize=image_size)
    with _opened(file) as image:
        return np.asarray(_to_rgb(_upright(image)))


def check_header(file: str | BinaryIO):
    """Raises as `decode_image` if `file` does not begin as an image of a known format and size; reads no pixel."""
    with _opened(file):
        pass


def decode_as_it_is(file: str | BinaryIO, *, channels: int) -> np.ndarray:
    """The stored pixels of one image file, not turned upright: uint8 [H, W, channels], of 1, 3 or 4 channels.

    Black and white become 0 and 255, and palette indices their colours. Raises ValueError for another kind of image,
    such as 16-bit grey, otherwise as `decode_image`.
    """
    with _opened(file) as image:
        mode = _MODES.get(channels)
        if (image.mode, mode) in _SAYS_THE_SAME and "transparency" not in image.info:
            image = image.convert(mode)
        if image.mode != mode:
            raise ValueError(f"an image of Pillow's mode {image.mode}, but {channels} channels of 8 bits are expected")
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def decode_centre(file: str | BinaryIO, *, image_size: int, resize: int) -> np.ndarray:
    """The centre square of `image_size` pixels, once the shorter side is resized to `resize`: uint8 [H, W, 3].

    H = W = `image_size`, which `resize` must reach. Both happen in one bilinear, antialiased resampling; otherwise as
    `decode_image`.
    """
    with _opened(file) as image:
        # Lets the JPEG decoder halve large photographs, never below twice the requested size.
        image.draft(None, (2 * resize, 2 * resize))
        bleed = (1 - image_size / resize) / 2
        rgb = _to_rgb(_upright(image))
        # `bleed` keeps image_size / resize of the shorter side; the square crop then cuts the longer one.
        size = (image_size, image_size)
        return np.asarray(ImageOps.fit(rgb, size, method=Image.Resampling.BILINEAR, bleed=bleed))


def decode_random_crop(file: str | BinaryIO, *, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of random position, area and shape, resized to a square: uint8 [image_size, image_size, 3].

    The area is uniform in 8 % to 100 % of the image, width over height log-uniform in 3/4 to 4/3, the position uniform
    (Szegedy et al. 2014, section 6). Resizing is bilinear, or averages areas if both sides still shrink to less than
    half after the JPEG decoder's shrinking. Otherwise as `decode_image`.
    """
    with _opened(file) as image:
        width, height = reversed(image.size) if _orientation(image) in _ON_ITS_SIDE else image.size
        left, top, right, bottom = random_box(width, height, rng=rng)
        smaller = min(right - left, bottom - top) // image_size
        pixels = _decoded(image, shrink=max((by for by in _JPEG_SHRINKS if by <= smaller), default=1))
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    crop = pixels[round(top * y) : round(bottom * y), round(left * x) : round(right * x)]
    return _resized(crop, image_size)


def random_box(width: int, height: int, *, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """`(left, top, right, bottom)` of the crop of `decode_random_crop`, in pixels.

    The first of ten drawn crops that fits into the image; if none does, the largest centred one of an allowed shape.
    """
    area = width * height * rng.uniform(*_CROP_AREA, _CROP_TRIES)
    shape = np.exp(rng.uniform(*np.log(_CROP_SHAPE), _CROP_TRIES))
    widths, heights = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
    fits = np.flatnonzero((0 < widths) & (widths <= width) & (0 < heights) & (heights <= height))
    if len(fits):
        w, h = int(widths[fits[0]]), int(heights[fits[0]])
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    else:
        narrowest, widest = _CROP_SHAPE
        w, h = min(width, max(1, round(height * widest))), min(height, max(1, round(width / narrowest)))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def why_bad(error: Exception) -> str:
    """Why decoding a file raised `error`, as one printable line."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a whole image of a known format ({', '.join(FORMATS)})"
    return shown(" ".join(str(error).split())) or type(error).__name__


def check_is_bad(error: Exception, name: str):
    """Raises DataError if `error`, from decoding the image `name`, is the machine's fault and not the file's.

    Skipping the image would leave it out in this run only.
    """
    if is_passing(error):
        raise DataError(
            f"{shown(name)} cannot be read now ({why_bad(error)}): this machine is short of memory or open files, or"
            " its disk fails or denies access; fix that and run the same command again"
        ) from error


def one_line(error: Exception) -> str:
    """The type of `error` and the beginning of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def shown(text: str) -> str:
    """`text` made printable on one line: file names may hold line ends and undecodable bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextlib.contextmanager
def _opened(file: str | BinaryIO) -> Iterator[Image.Image]:
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file) as file:
        size, most = file.seek(0, os.SEEK_END), _MAX_BYTES_PER_PIXEL * MAX_PIXELS
        if size > most:
            raise ValueError(f"{size} bytes are over the limit of {most}")
        file.seek(0)
        _check_pixels(*_size_of_webp(file.read(_WEBP_HEAD)))
        with Image.open(file, formats=FORMATS) as image:
            _check_pixels(*image.size)
            yield image


def _check_pixels(width: int, height: int):
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} is over the limit of {MAX_PIXELS} pixels")


def _size_of_webp(head: bytes) -> tuple[int, int]:
    """The width and height claimed by a file that begins with `head`, (0, 0) if it is not a WebP.

    Pillow allocates two such images as soon as it opens one. RFC 9649, sections 2.5 to 2.7 and 3.4; RFC 6386, 9.1.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < _WEBP_HEAD:
        return 0, 0
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to lose the pixels
        return 1


def _decoded(image: Image.Image, *, shrink: int) -> np.ndarray:
    """The upright pixels of `image`; a JPEG is made `shrink` times smaller: uint8 [h, w, 3]."""
    size = tuple(math.ceil(side / shrink) for side in image.size)
    if image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) == 1:
        import simplejpeg

        # Also libjpeg-turbo, but straight to an array. Pillow judges images that it refuses.
        image.fp.seek(0)
        data = image.fp.read()
        with contextlib.suppress(ValueError):
            # Checked, as a false second header could claim a size that fills the memory.
            if simplejpeg.decode_jpeg_header(data)[:2] == image.size[::-1]:
                return simplejpeg.decode_jpeg(data, min_height=size[1], min_width=size[0])
    image.draft(None, size)
    return np.asarray(_to_rgb(_upright(image)))


def _resized(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 [h, w, 3] to uint8 [image_size, image_size, 3]."""
    import cv2

    cv2.setNumThreads(1)  # we decode images in our own threads
    # Bilinear reads the four nearest pixels and skips none until a side shrinks to half.
    method = cv2.INTER_AREA if min(pixels.shape[:2]) >= 2 * image_size else cv2.INTER_LINEAR
    return cv2.resize(pixels, (image_size, image_size), interpolation=method)


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        grey = np.array(image).astype(np.int32)  # in place from here: an image may have 89 million pixels
        np.clip(grey, 0, 65535, out=grey)
        grey += 128
        grey //= 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")
