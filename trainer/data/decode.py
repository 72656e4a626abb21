"""Decodes image files, which may come from anyone, to RGB."""

import contextlib
import math
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from linseed.trainer.data.image_file import FORMATS, opened
from linseed.trainer.errors import DataError, is_passing

T = TypeVar("T")

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

FITS = ("crop", "pad", "stretch")
BACKGROUNDS = ("white", "grey", "black")
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}

_JPEG_SHRINKS = (1, 2, 4, 8)  # factors by which JPEG decoders can shrink while decoding, which saves time

_CROP_AREA = (0.08, 1.0)
_CROP_SHAPE = (3 / 4, 4 / 3)
_CROP_TRIES = 10


class Conversion(NamedTuple):
    """How the pixels of image files become RGB images of one size.

    fit: how an image becomes square, its longer side cut off ("crop"), its shorter one filled up with `background`
    ("pad"), or its sides stretched to one length ("stretch"). background: what transparent pixels are laid on, a name
    in `BACKGROUNDS`. bits: how many bits, at most 16, the values in 16-bit PNG files use. interpolation: how pixels are
    resampled, antialiased, a name in `INTERPOLATIONS`; random crops in training are always bilinear.
    """

    fit: str
    background: str
    bits: int
    interpolation: str = "bilinear"

    def marks(self) -> dict[str, str | int]:
        """What of it a fingerprint of images has to hold: earlier runs had no other interpolation."""
        marks = self._asdict()
        return marks if self.interpolation != "bilinear" else {k: v for k, v in marks.items() if k != "interpolation"}


PLAIN = Conversion(fit="crop", background="white", bits=16)


def decode_image(file: str | BinaryIO, *, image_size: int, conversion: Conversion = PLAIN) -> np.ndarray:
    """Decodes one image file (a path, or a file open in binary mode) to RGB, uint8 [H, W, 3].

    The image is turned upright by its EXIF orientation. Grey and palette images are converted, 16-bit values are scaled
    to 8 bits, transparency is composited onto the background, and an animation gives its first frame. `image_size` > 0
    makes the image a square of that many pixels, as `decode_square` does; 0 keeps the size. A bad file raises whatever
    its decoder raises: OSError, ValueError, SyntaxError, RuntimeError and others.
    """
    if image_size:
        return decode_square(file, image_size=image_size, resize=image_size, conversion=conversion)
    with opened(file) as image:
        return np.asarray(_upright_rgb(image, conversion))


def check_header(file: str | BinaryIO):
    """Raises as `decode_image` if `file` does not begin as an image of a known format and size; reads no pixel."""
    with opened(file, decodes=False):
        pass


def decode_as_it_is(file: str | BinaryIO, *, channels: int) -> np.ndarray:
    """The stored pixels of one image file, not turned upright: uint8 [H, W, channels], of 1, 3 or 4 channels.

    Black and white become 0 and 255, and palette indices their colours. Raises ValueError for another kind of image,
    such as 16-bit grey, otherwise as `decode_image`.
    """
    with opened(file) as image:
        mode = _MODES.get(channels)
        if (image.mode, mode) in _SAYS_THE_SAME and "transparency" not in image.info:
            image = image.convert(mode)
        if image.mode != mode:
            raise ValueError(f"an image of Pillow's mode {image.mode}, but {channels} channels of 8 bits are expected")
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def decode_square(file: str | BinaryIO, *, image_size: int, resize: int, conversion: Conversion = PLAIN) -> np.ndarray:
    """The image made square of `resize` pixels by `conversion.fit`, and its centre: uint8 [image_size, image_size, 3].

    `resize` is at least `image_size`. Both happen in one antialiased resampling. A square image is the same
    for every fit. Otherwise as `decode_image`.
    """
    method = INTERPOLATIONS[conversion.interpolation]
    with opened(file) as image:
        # Lets the JPEG decoder halve large photographs, never below twice the requested size.
        image.draft(None, (2 * resize, 2 * resize))
        rgb = _upright_rgb(image, conversion)
    size = (image_size, image_size)
    if conversion.fit == "crop":
        # `bleed` keeps image_size / resize of the shorter side; the square crop then cuts the longer one.
        bleed = (1 - image_size / resize) / 2
        return np.asarray(ImageOps.fit(rgb, size, method=method, bleed=bleed))
    scales = [resize / side for side in rgb.size] if conversion.fit == "stretch" else [resize / max(rgb.size)] * 2
    shown_size = [min(image_size, max(1, round(side * scale))) for side, scale in zip(rgb.size, scales, strict=True)]
    kept = [min(side, pixels / scale) for side, pixels, scale in zip(rgb.size, shown_size, scales, strict=True)]
    left, top = ((side - part) / 2 for side, part in zip(rgb.size, kept, strict=True))
    part = rgb.resize(shown_size, method, box=(left, top, left + kept[0], top + kept[1]))
    square = Image.new("RGB", size, conversion.background)
    square.paste(part, tuple((image_size - side) // 2 for side in shown_size))
    return np.asarray(square)


def decode_random_crop(
    file: str | BinaryIO, *, image_size: int, rng: np.random.Generator, conversion: Conversion = PLAIN
) -> np.ndarray:
    """A crop of random position, area and shape, resized to a square: uint8 [image_size, image_size, 3].

    The area is uniform in 8 % to 100 % of the image, width over height log-uniform in 3/4 to 4/3, the position uniform
    (Szegedy et al. 2014, section 6). Resizing is bilinear, or averages areas if both sides still shrink to less than
    half after the JPEG decoder's shrinking. Otherwise as `decode_image`.
    """
    with opened(file) as image:
        if isinstance(image, JpegImageFile):
            width, height = image.size[::-1] if _orientation(image) in _ON_ITS_SIDE else image.size
            left, top, right, bottom = random_box(width, height, rng=rng)
            smaller = min(right - left, bottom - top) // image_size
            shrink = max((by for by in _JPEG_SHRINKS if by <= smaller), default=1)
            pixels = _decoded_jpeg(image, shrink=shrink, conversion=conversion)
        else:
            pixels = np.asarray(_upright_rgb(image, conversion))
            height, width = pixels.shape[:2]
            left, top, right, bottom = random_box(width, height, rng=rng)
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


def attempt(read: Callable[[], T], name: str) -> tuple[T | None, str]:
    """`read()` and "", or None and why the image `name` is bad.

    Raises DataError where the machine is at fault and not the file: skipping would leave it out in this run only.
    """
    try:
        return read(), ""
    except Exception as error:  # a decoder may raise anything on damaged bytes
        if is_passing(error):
            raise DataError(
                f"{shown(name)} cannot be read now ({why_bad(error)}): this machine is short of memory or open files, "
                "or its disk fails or denies access; fix that and run the same command again"
            ) from error
        return None, why_bad(error)


def one_line(error: Exception) -> str:
    """The type of `error` and the beginning of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def shown(text: str) -> str:
    """`text` made printable on one line: file names may hold line ends and undecodable bytes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image, once it is turned upright."""
    width, height = image.size
    return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to lose the pixels
        return 1


def _decoded_jpeg(image: JpegImageFile, *, shrink: int, conversion: Conversion) -> np.ndarray:
    """The upright pixels of `image`, made `shrink` times smaller: uint8 [h, w, 3]."""
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
    return np.asarray(_upright_rgb(image, conversion))


def _resized(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 [h, w, 3] to uint8 [image_size, image_size, 3]."""
    import cv2

    cv2.setNumThreads(1)  # we decode images in our own threads
    # Bilinear reads the four nearest pixels and skips none until a side shrinks to half.
    method = cv2.INTER_AREA if min(pixels.shape[:2]) >= 2 * image_size else cv2.INTER_LINEAR
    return cv2.resize(pixels, (image_size, image_size), interpolation=method)


def is_deep(image: Image.Image) -> bool:
    """Whether `image`, not yet decoded, is a PNG of 16 bits."""
    return image.format == "PNG" and str(image.tile[0][3]).endswith("16B")


def deep_values(image: Image.Image) -> np.ndarray | None:
    """The values of a PNG of 16 bits, not yet decoded: uint16 [H, W] or [H, W, 4]; None for any other image.

    A PPM file says itself what its largest value is, and Pillow scales by it.
    """
    if not is_deep(image):
        return None
    if image.mode.startswith("I"):
        return np.array(image).astype(np.uint16, copy=False)
    import cv2

    # Pillow reads 8 of the 16 bits of colours.
    position = image.fp.tell()
    image.fp.seek(0)
    values = cv2.imdecode(np.frombuffer(image.fp.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    image.fp.seek(position)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != image.size[::-1]:
        raise ValueError("a damaged PNG of 16 bits")
    return cv2.cvtColor(values, cv2.COLOR_BGR2RGBA if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _upright_rgb(image: Image.Image, conversion: Conversion) -> Image.Image:
    rgb = _to_rgb(image, conversion)
    turn = _TURNS.get(_orientation(image))  # which decodes a PNG, whose EXIF may be at its end
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image, conversion: Conversion) -> Image.Image:
    if conversion.bits < 16 and (values := deep_values(image)) is not None:
        colours = values[..., :3] if values.ndim == 3 else values
        image = Image.fromarray(_to_8_bits(colours, bits=conversion.bits))
        if values.ndim == 3:
            image.putalpha(Image.fromarray(_to_8_bits(values[..., 3], bits=16)))
    elif image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        image = Image.fromarray(_to_8_bits(np.array(image), bits=16))
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, conversion.background)
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray, *, bits: int) -> np.ndarray:
    """Integers that use `bits` of 16 bits, scaled to uint8."""
    most = 2**bits - 1
    scaled = values.astype(np.int32)  # in place from here: an image may have 89 million pixels
    if bits < 16 and scaled.max() > most:
        raise ValueError(f"it holds the value {scaled.max()}, more than config.data.source.bits={bits} allow")
    np.clip(scaled, 0, most, out=scaled)
    scaled *= 255
    scaled += most // 2
    scaled //= most
    return scaled.astype(np.uint8)
