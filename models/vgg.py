"""VGG (Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition").

`vgg11`, `vgg13`, `vgg16` and `vgg19` are A, B, D and E of table 1. Their hidden layers take He's variance, so that they
train without being grown from a shallower one.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.alexnet import dense_head
from linseed.models.layers import ACTIVATIONS, NORMALIZATIONS, Block, Convolution, kaiming, lookup, max_pool_2x2

WIDTHS = (64, 128, 256, 512, 512)

# The width of the two hidden dense layers, all that goes by the image size: the 3x3 convolutions fit any from 32x32 on.
STEMS = {"cifar": 512, "imagenet": 4096}


class Vgg(nn.Module):
    """Stages of 3x3 convolutions with ReLU, each ended by 2x2 max-pooling, and three dense layers.

    stage_sizes, widths: convolutions of each stage, and their channels.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    dense_width: int
    normalization: Callable[..., jax.Array]
    dropout: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for j in range(size):
                block = Block(
                    weights=partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=self.convolution, name="conv"),
                    width=width,
                    activation=ACTIVATIONS["relu"],
                    kernel_init=kaiming,
                    normalization=self.normalization,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
            x = max_pool_2x2(x)
        return dense_head(
            x,
            width=self.dense_width,
            dropout=self.dropout,
            num_classes=self.num_classes,
            train=train,
            dtype=self.dtype,
        )


def _vgg(
    stage_sizes: tuple[int, ...],
    /,
    *,
    stem: str,
    normalization: str,
    dropout: float,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
) -> nn.Module:
    """Builds `Vgg`. stem: a name in STEMS.

    normalization: that of the convolutions, a name in `models.layers.NORMALIZATIONS`. dropout: rate after each hidden
    dense layer, in [0, 1). "none" and 0.5 are what was published.
    """
    return Vgg(
        stage_sizes=stage_sizes,
        widths=WIDTHS,
        dense_width=lookup("stem", stem, STEMS),
        normalization=lookup("normalization", normalization, NORMALIZATIONS),
        dropout=dropout,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        convolution=convolution,
    )


vgg11 = partial(_vgg, (1, 1, 2, 2, 2))
vgg13 = partial(_vgg, (2, 2, 2, 2, 2))
vgg16 = partial(_vgg, (2, 2, 3, 3, 3))
vgg19 = partial(_vgg, (2, 2, 4, 4, 4))
