"""VGG (Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition").

`vgg11`, `vgg13`, `vgg16` and `vgg19` are A, B, D and E of table 1. Their hidden layers take He's variance, so that they
train without being grown from a shallower one.
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax

from linseed.models.alexnet import dense_head
from linseed.models.layers import NORMALIZATIONS, Block, Classifier
from linseed.models.pooling import max_pool_2x2
from linseed.ranges import BelowOne, OneOf

# The width of the two hidden dense layers, all that goes by the image size: the 3x3 convolutions fit any from 32x32 on.
STEMS = {"cifar": 512, "imagenet": 4096}


class Vgg(Classifier, kw_only=True):
    """Stages of 3x3 convolutions with ReLU, each ended by 2x2 max-pooling, and three dense layers.

    stage_sizes, widths: convolutions of each stage, and their channels. normalization: of the convolutions. dropout:
    rate after each hidden dense layer. "none" and 0.5 are what was published.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = "none"
    dropout: BelowOne = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for j in range(size):
                block = Block(
                    weights=partial(
                        nn.Conv, kernel_size=(3, 3), conv_general_dilated=self.compute.convolution, name="conv"
                    ),
                    width=width,
                    activation="relu",
                    kernel_init="kaiming_normal",
                    normalization=self.normalization,
                    compute=self.compute,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
            x = max_pool_2x2(x)
        return dense_head(
            x,
            width=STEMS[self.stem],
            dropout=self.dropout,
            num_classes=self.num_classes,
            train=train,
            compute=self.compute,
        )


vgg = partial(Vgg, widths=(64, 128, 256, 512, 512))
