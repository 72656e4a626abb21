"""Opens image files, which may come from anyone, within bounds of memory and of time."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

# The decoders to try: a short list, as hostile files can attack each one.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

# A small file can claim a size that fills the memory. Pillow warns at this size by default, and raises only at twice as
# much.
MAX_PIXELS = 89_478_485

# Some decoders also read all that follows the image in its file. Two bytes for each of four channels.
_MAX_BYTES_PER_PIXEL = 8

# Pillow parses headers and chunks in Python, so what takes time is the number of its reads. Sound files need a few
# hundred, and GIF and PNG three or fewer for each 384 bytes.
_MOST_READS = 10_000
_BYTES_PER_READ = 128
_MOST_HEADER_BYTES = 2**25  # before the first pixel; Pillow joins comments and metadata again and again

# Each scan of a JPEG passes over all pixels, whatever its length: a scan of a few bytes costs as much as a long one.
_MOST_PIXELS_IN_SCANS = 16 * MAX_PIXELS

# Decoders that are written in Python take a microsecond for each value.
_IN_PYTHON = ("bmp_rle", "ppm", "ppm_plain")
_MOST_VALUES_IN_PYTHON = 2**24
_MOST_COMMENTS = 1000  # each is cut out of a megabyte

_HEAD = 32  # bytes that hold a WebP's size, and tell formats apart

# How files of formats that are not read begin, from the offset on.
_OTHER_FORMATS = (
    (4, b"ftyp", "HEIC, AVIF or a video"),
    (0, b"II*\0", "TIFF or a camera's raw format"),
    (0, b"MM\0*", "TIFF or a camera's raw format"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop's format"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
)


@contextlib.contextmanager
def opened(file: str | BinaryIO, *, decodes: bool = True) -> Iterator[Image.Image]:
    """The image in `file` (a path, or a file open in binary mode), opened by Pillow and not yet decoded.

    decodes: whether it is to be decoded; otherwise its header alone is read, and the time to decode it not judged.
    Raises whatever its decoder raises for a bad file, ValueError for one beyond the bounds, and OSError for one of
    another format.
    """
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file) as file:
        size, most = file.seek(0, os.SEEK_END), _MAX_BYTES_PER_PIXEL * MAX_PIXELS
        if size > most:
            raise ValueError(f"{size} bytes are over the limit of {most}")
        file.seek(0)
        head = file.read(_HEAD)
        _check_format(head)
        _check_pixels(*_size_of_webp(head))
        counted = _CountedFile(file, reads=_MOST_READS + size // _BYTES_PER_READ)
        if head[8:12] != b"WEBP":  # which is read whole
            counted.bytes_left = _MOST_HEADER_BYTES
        counted.seek(0)
        with Image.open(counted, formats=FORMATS) as image:
            counted.bytes_left = math.inf
            _check_pixels(*image.size)
            if decodes:
                _check_time(image, counted)
            yield image


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow, which warns of odd metadata, and of large images, which `opened` refuses; in all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _CountedFile:
    """A binary file that raises ValueError after too many reads, or too many bytes."""

    def __init__(self, file: BinaryIO, *, reads: int):
        self._file = file
        self.reads_left, self.bytes_left = reads, math.inf

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.reads_left -= 1
        self.bytes_left -= len(data)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ValueError("a header or chunks that would take too long to read")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _check_format(head):
    if not head:
        raise OSError("an empty file")
    for offset, begin, name in _OTHER_FORMATS:
        if head[offset:].startswith(begin):
            raise OSError(f"{name}, which is not read; convert it to PNG or JPEG")


def _check_pixels(width: int, height: int):
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} is over the limit of {MAX_PIXELS} pixels")


def _check_time(image, file):
    """Raises ValueError where decoding would take minutes."""
    decoder = image.tile[0][0] if image.tile else ""
    if decoder == "jpeg" and _count(file, b"\xff\xda") * math.prod(image.size) > _MOST_PIXELS_IN_SCANS:
        raise ValueError("a JPEG of so many scans and pixels would take too long to decode; save it as baseline JPEG")
    if decoder in _IN_PYTHON:
        values = math.prod(image.size) * len(image.getbands())
        if values > _MOST_VALUES_IN_PYTHON:
            raise ValueError(f"{image.format} of this kind is too slow to decode at this size; convert it to PNG")
        if decoder == "ppm_plain" and _count(file, b"#") > _MOST_COMMENTS:
            raise ValueError(f"over {_MOST_COMMENTS} comments")
        file.reads_left += 4 * values


def _count(file, pattern):
    """How often `pattern` is in `file`, whose position stays."""
    position, found, last = file.tell(), 0, b""
    file.seek(0)
    while block := last + file.read(2**20):
        found += block.count(pattern)
        last = block[len(block) - len(pattern) + 1 :]
        if block == last:
            break
    file.seek(position)
    return found


def _size_of_webp(head: bytes) -> tuple[int, int]:
    """The width and height claimed by a file that begins with `head`, (0, 0) if it is not a WebP.

    Pillow allocates two such images as soon as it opens one. RFC 9649, sections 2.5 to 2.7 and 3.4; RFC 6386, 9.1.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < _HEAD:
        return 0, 0
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
