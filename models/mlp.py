"""The multi-layer perceptron: fully connected layers on flattened images."""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import ACTIVATIONS, INITIALIZERS, NORMALIZATIONS, Block, Classifier
from linseed.ranges import BelowOne, Count, Length, OneOf


class Mlp(Classifier, kw_only=True):
    """Flattened images, one dense-norm-activation block and dropout for each width, dense.

    widths: features of each hidden layer. kernel_init: of the hidden layers; the last, which no activation follows,
    takes LeCun's 1 / fan_in. dropout: rate after each hidden layer.
    """

    widths: Annotated[tuple[Count, ...], Length(1)] = (256, 256)
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    kernel_init: Annotated[str, OneOf("auto", INITIALIZERS)] = "auto"
    normalization: Annotated[str, OneOf(NORMALIZATIONS)] = "none"
    dropout: BelowOne = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        for i, width in enumerate(self.widths):
            block = Block(
                weights=partial(nn.Dense, name="dense"),
                width=width,
                activation=self.activation,
                kernel_init=self.kernel_init,
                normalization=self.normalization,
                compute=self.compute,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.compute.dtype, name="head")(x).astype(jnp.float32)
