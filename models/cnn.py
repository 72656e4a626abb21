"""A small convolutional network, for small images and for tests."""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import ACTIVATIONS, INITIALIZERS, NORMALIZATIONS, Block, Classifier
from linseed.models.pooling import max_pool_2x2
from linseed.ranges import BelowOne, Count, Length, OneOf


class Cnn(Classifier, kw_only=True):
    """One 3x3 conv-norm-activation block for each width, 2x2 max-pooling between blocks, global mean, dropout, dense.

    widths: channels of each block; the image is halved between blocks. kernel_init: of the convolutions; the last layer
    takes LeCun's 1 / fan_in. dropout: rate before the last layer.
    """

    widths: Annotated[tuple[Count, ...], Length(1)] = (64, 128, 128)
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    kernel_init: Annotated[str, OneOf("auto", INITIALIZERS)] = "auto"
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = "batch"
    dropout: BelowOne = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, width in enumerate(self.widths):
            if i > 0:
                x = max_pool_2x2(x)
            block = Block(
                weights=partial(
                    nn.Conv, kernel_size=(3, 3), conv_general_dilated=self.compute.convolution, name="conv"
                ),
                width=width,
                activation=self.activation,
                kernel_init=self.kernel_init,
                normalization=self.normalization,
                compute=self.compute,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.compute.dtype, name="head")(x).astype(jnp.float32)
