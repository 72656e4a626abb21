"""AlexNet (Krizhevsky et al. 2012), as the single tower of Krizhevsky 2014, "One weird trick", section 5.

The variant that torchvision has: 64, 192, 384, 256 and 256 channels, no grouped convolutions, no local response
normalisation; 61,100,840 parameters for 224x224 images of 1,000 classes. The hidden layers take He's variance and zero
biases in place of a standard deviation of 0.01 and biases of one.
"""

from functools import partial
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, kaiming
from linseed.ranges import BelowOne, OneOf


class Stem(NamedTuple):
    """The first convolution, size x size, and the width of the two hidden dense layers, which go by the image size."""

    size: int
    stride: int
    padding: int
    dense_width: int


# "imagenet" for images near 224x224 and at least 63x63, "cifar" for those near 32x32 and at least 15x15.
STEMS = {
    "cifar": Stem(size=3, stride=1, padding=1, dense_width=512),
    "imagenet": Stem(size=11, stride=4, padding=2, dense_width=4096),
}


def dense_head(
    x: jax.Array, *, width: int, dropout: float, num_classes: int, train: bool, compute: Compute
) -> jax.Array:
    """Two hidden dense layers, ReLU and dropout after each, and the logits: float [B, ...] -> float32 [B, num_classes].

    Called in a compact method, whose module gets the layers `dense1`, `dense2` and `head`.
    """
    x = x.reshape(len(x), -1)
    for name in ("dense1", "dense2"):
        x = nn.relu(nn.Dense(width, dtype=compute.dtype, kernel_init=kaiming, name=name)(x))
        x = nn.Dropout(dropout, deterministic=not train)(x)
    head = nn.Dense(num_classes, dtype=compute.dtype, kernel_init=nn.initializers.normal(0.01), name="head")
    return head(x).astype(jnp.float32)


def _overlapping_max_pool(x):
    """Max over 3x3 windows with stride 2 (section 3.4)."""
    if min(x.shape[1:3]) < 3:
        raise ValueError(f"cannot pool a feature map of {x.shape[1]}x{x.shape[2]}: give stem='cifar' or larger images")
    return nn.max_pool(x, (3, 3), (2, 2))


class AlexNet(Classifier, kw_only=True):
    """Five convolutions, three of them followed by max-pooling, and three dense layers.

    stem: by the size of the images. dropout: rate after each hidden dense layer; 0.5 is what was published.
    """

    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    dropout: BelowOne = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem, compute = STEMS[self.stem], self.compute
        conv = partial(nn.Conv, dtype=compute.dtype, kernel_init=kaiming, conv_general_dilated=compute.convolution)
        x = conv(64, (stem.size, stem.size), stem.stride, padding=stem.padding, name="conv1")(images)
        x = _overlapping_max_pool(nn.relu(x))
        x = _overlapping_max_pool(nn.relu(conv(192, (5, 5), name="conv2")(x)))
        x = nn.relu(conv(384, (3, 3), name="conv3")(x))
        x = nn.relu(conv(256, (3, 3), name="conv4")(x))
        x = _overlapping_max_pool(nn.relu(conv(256, (3, 3), name="conv5")(x)))
        return dense_head(
            x,
            width=stem.dense_width,
            dropout=self.dropout,
            num_classes=self.num_classes,
            train=train,
            compute=compute,
        )
