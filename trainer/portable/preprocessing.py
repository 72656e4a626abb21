"""How images become what a network takes: as those of its run's validation split were read."""

import io
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from linseed import ranges
from linseed.ranges import Between, Count, OneOf
from linseed.trainer.data.decode import (
    BACKGROUNDS,
    FITS,
    INTERPOLATIONS,
    PLAIN,
    Conversion,
    decode_as_it_is,
    decode_image,
    decode_square,
)
from linseed.trainer.data.image_file import MAX_PIXELS
from linseed.trainer.errors import ConfigError, DataError

# The modes of Pillow that a PNG file holds as they are.
_IN_PNG = ("1", "I", "I;16", "L", "LA", "P", "RGB", "RGBA")


class Preprocessing(NamedTuple):
    """The size of the images, and how files become images of it; see `decode.decode_square` and `decode.Conversion`.

    A network of one channel takes the luma of an RGB image, which of a grey one is its value. An image that is no
    square, or of other channels, has to be of this size already.
    """

    height: Count
    width: Count
    channels: Annotated[int, Between(1, 1024)]
    resize: Annotated[int, Between(1, 2**16)]
    fit: Annotated[str, OneOf(FITS)]
    background: Annotated[str, OneOf(BACKGROUNDS)]
    bits: Annotated[int, Between(8, 16)]
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)]

    def decode(self, file: str | BinaryIO) -> np.ndarray:
        """The image in `file`, a path or a file open in binary mode: uint8 [height, width, channels].

        A bad file raises whatever its decoder raises, one of another size ValueError.
        """
        if self.channels not in (1, 3):
            return self._checked(decode_as_it_is(file, channels=self.channels))
        conversion = Conversion(self.fit, self.background, self.bits, self.interpolation)
        if self.height == self.width:
            pixels = decode_square(file, image_size=self.height, resize=self.resize, conversion=conversion)
        else:
            pixels = self._checked(decode_image(file, image_size=0, conversion=conversion))
        return pixels if self.channels == 3 else np.asarray(Image.fromarray(pixels).convert("L"))[..., np.newaxis]

    def of_image(self, image: Image.Image) -> np.ndarray:
        """An image of Pillow's as `decode` reads it from a file without loss."""
        file = io.BytesIO()
        if image.mode == "F":
            raise ValueError("pixels are floats of unknown range")
        whole = image if image.mode in _IN_PNG else image.convert("RGB")
        whole.save(file, "PNG", compress_level=0, exif=image.getexif())
        return self.decode(file)

    def of_array(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W] or [H, W, C]: of the network's shape they are taken as they are, otherwise as an image file."""
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise DataError(
                f"an array of {pixels.dtype} {list(pixels.shape)} is no image; give uint8 [H, W, C] of values 0 to 255"
            )
        pixels = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
        if pixels.shape == (self.height, self.width, self.channels):
            return pixels
        if pixels.shape[2] not in (1, 3, 4) or not pixels.size:
            raise DataError(f"an array of shape {list(pixels.shape)} is no image of 1, 3 or 4 channels")
        return self.of_image(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))

    def _checked(self, pixels):
        if pixels.shape[:2] != (self.height, self.width):
            height, width = pixels.shape[:2]
            raise ValueError(f"an image of {width}x{height} pixels, and the network takes {self.width}x{self.height}")
        return pixels


def of_run(source: Mapping[str, Any], *, image_shape: tuple[int, int, int]) -> Preprocessing:
    """That of a run with the section `source` of its config and images of `image_shape`, (H, W, C).

    A source that does not convert images, such as arrays in a file, is given what `folder` does by default. Raises
    ConfigError for a source of a plugin that reads images in other ways.
    """
    height, width, channels = image_shape
    default = Preprocessing(height, width, channels, height, **PLAIN._asdict())
    given = {key: source[key] for key in ("resize", *PLAIN._fields) if key in source}
    try:
        return read(default._asdict() | given)
    except ranges.RangeError as error:
        raise ConfigError(
            f"images of the source '{source.get('name')}' are read in no way known here: {error}"
        ) from None


def read(record: Mapping[str, Any]) -> Preprocessing:
    """The `Preprocessing` in a record of that form. Raises RangeError or KeyError for one that is none."""
    found = Preprocessing(**{key: ranges.convert(record[key], kind) for key, kind in _KINDS.items()})
    if found.height * found.width > MAX_PIXELS or found.resize < found.height == found.width:
        raise ranges.RangeError(f"{found.width}x{found.height} pixels, cut out of {found.resize}")
    return found


_KINDS = Preprocessing.__annotations__
