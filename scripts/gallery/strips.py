"""Augmentations of a photograph: the original, then draws, side by side."""

import io
import zlib
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from linseed.trainer.data.augment import make_augment
from linseed.trainer.data.augment.place import places

CREDIT = 'The photograph is "china.jpg" of scikit-learn, by danielbuechele, CC BY 2.0, cropped and made smaller.'
SIDE, DRAWS = 64, 7
_GAP = 4

# Each op at a strength that shows; ops with a probability show both cases.
SPECS = {
    "alternating_flip": "alternating_flip()",
    "augmix": "augmix(3)",
    "autoaugment": "autoaugment('imagenet')",
    "autocontrast": "autocontrast(0.5)",
    "brightness": "brightness(0.5)",
    "color_jitter": "color_jitter(0.4, 0.4, 0.4, 0.1)",
    "contrast": "contrast(0.6)",
    "cutout": "cutout(24)",
    "equalize": "equalize(0.5)",
    "flip_lr": "flip_lr(0.5)",
    "flip_ud": "flip_ud(0.5)",
    "grayscale": "grayscale(0.5)",
    "hue": "hue(0.3)",
    "invert": "invert(0.5)",
    "lens_distortion": "lens_distortion(0.3)",
    "pad_crop": "pad_crop(12)",
    "perspective": "perspective(0.4)",
    "posterize": "posterize(0.5, 2)",
    "randaugment": "randaugment(2, 9)",
    "random_erasing": "random_erasing(0.7)",
    "random_resized_crop": "random_resized_crop(0.2)",
    "rotate": "rotate(30)",
    "saturation": "saturation(0.9)",
    "scale": "scale(0.4)",
    "sharpness": "sharpness(0.9)",
    "shear": "shear(0.4)",
    "solarize": "solarize(0.5, 0.5)",
    "stretch": "stretch(0.4)",
    "translate": "translate(0.25)",
    "trivialaugment": "trivialaugment()",
}


def photograph() -> np.ndarray:
    """scikit-learn's "china.jpg", its left square: float32 [SIDE, SIDE, 3] in [0, 1]."""
    pixels = load_sample_image("china.jpg")
    height = pixels.shape[0]
    small = Image.fromarray(pixels[:, :height]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


def draws(spec: str, image: np.ndarray) -> np.ndarray:
    """DRAWS results of the op string on `image`, float32 [H, W, C] in [0, 1], one per epoch: float32 [DRAWS, H, W, C].

    The op string is the seed, so two ops do not share draws. Raises ConfigError as `make_augment` does.
    """
    root = jax.random.key(zlib.crc32(spec.encode()), impl="threefry2x32")
    epochs = np.arange(DRAWS, dtype=np.int32)
    # It runs once, so compiling dominates; that is faster without LLVM's optimiser.
    augment = jax.jit(make_augment(spec), compiler_options={"xla_backend_optimization_level": 0})
    keys, same = jax.random.split(root, DRAWS), np.zeros_like(epochs)
    return np.asarray(augment(keys, np.stack([image] * DRAWS), places(root, same, epochs)))


def strip(spec: str, image: np.ndarray) -> np.ndarray:
    """`image`, a white gap, then `draws(spec, image)`: uint8 [H, W, C]."""
    gap = np.ones((len(image), _GAP, image.shape[-1]), np.float32)
    tiles = [image, gap, gap] + [part for draw in draws(spec, image) for part in (gap, draw)]
    return np.round(np.concatenate(tiles, 1) * 255).astype(np.uint8)


def save(pixels: np.ndarray, path: Path):
    """Writes uint8 [H, W, 3] as a PNG of at most 256 colours, a third of the size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())
