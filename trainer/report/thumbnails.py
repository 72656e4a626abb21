"""Small pictures for a page that is one file: images, and where the network looked, as data URIs."""

import base64
import io

import numpy as np
from PIL import Image, ImageFilter

SIDE = 112  # pixels, at most
_LOSSLESS = 48  # a picture of at most so many pixels a side is a PNG
_QUALITY = 80
_MARK = np.array([255, 176, 0], np.float32)  # the colour of a map; its lightness says the same without the colour
_GROUND = 0.45  # how light the image is under its map
_TOP = 99.0  # the percentile of a map that has the full colour
_CONTRAST = 2  # the power of a map, which leaves the image to be seen where it is low
_BLUR = 24  # a map is blurred by its side over this


def picture(image: np.ndarray) -> str:
    """uint8 [H, W, C] as a data URI, no larger than SIDE; of 2 channels their mean, of 4 and more the first three."""
    return _uri(_small(image))


def where(image: np.ndarray, saliency: np.ndarray) -> str:
    """The image in dark grey, and on it in colour what `saliency`, float [H, W], marks; a data URI as of `picture`."""
    ground = _small(image).convert("L")
    top = np.percentile(saliency, _TOP) or float(saliency.max()) or 1.0
    marks = Image.fromarray(np.uint8(255 * np.clip(saliency / top, 0, 1))).resize(ground.size, Image.Resampling.BOX)
    marks = marks.filter(ImageFilter.GaussianBlur(max(ground.size) / _BLUR))
    share = np.asarray(marks, np.float32)[..., None] / 255
    share = (share / max(float(share.max()), 1e-6)) ** _CONTRAST
    grey = _GROUND * np.asarray(ground, np.float32)[..., None]
    return _uri(Image.fromarray(np.uint8((1 - share) * grey + share * _MARK)))


def _small(image):
    channels = image.shape[-1]
    if channels >= 3:
        drawn = Image.fromarray(np.ascontiguousarray(image[..., :3]))
    else:
        drawn = Image.fromarray(np.uint8(image.mean(axis=-1)))
    drawn.thumbnail((SIDE, SIDE))
    return drawn


def _uri(drawn):
    kind = "png" if max(drawn.size) <= _LOSSLESS else "jpeg"
    written = io.BytesIO()
    drawn.save(written, kind, quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
