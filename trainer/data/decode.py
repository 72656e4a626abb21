"""Image files, which may come from anyone, decoded to RGB."""

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

# Decoders that are tried: a short list, because each one is a door for hostile files.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

# A small file can claim a size that fills the memory. Pillow's own default warns
# at this size, and raises only at twice as much.
MAX_PIXELS = 89_478_485

_EXIF_ORIENTATION = 0x0112


def decode_image(file: str | BinaryIO, *, image_size: int) -> np.ndarray:
    """Decodes one image file (a path, or a file open in binary mode) to RGB, uint8 [H, W, 3].

    Turned upright by its EXIF orientation; grey and palette images are converted,
    16-bit grey is scaled to 8 bits, transparent pixels are laid on white, and of an
    animation the first frame is taken. With `image_size` > 0 the shorter side is
    resized to it (bilinear, antialiased) and the centre square is cut out; 0 keeps
    the size. Whatever is wrong with the file raises, of any type that a decoder
    may raise: OSError, ValueError, SyntaxError, RuntimeError and others.
    """
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} is over the limit of {MAX_PIXELS} pixels")
        if image_size:
            # Lets the JPEG decoder halve large photographs, never below twice the size asked for.
            image.draft(None, (2 * image_size, 2 * image_size))
        rgb = _to_rgb(_upright(image))
        if image_size:
            rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BILINEAR)
        return np.asarray(rgb)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # Damaged EXIF is no reason to lose the pixels.
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255.
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")
