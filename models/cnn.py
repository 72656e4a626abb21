"""A small convolutional network, for small images and for tests."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import (
    ACTIVATIONS,
    NORMALIZATIONS,
    Activation,
    Block,
    Convolution,
    initializer,
    lookup,
    max_pool_2x2,
)


class Cnn(nn.Module):
    """One 3x3 conv-norm-activation block for each width, 2x2 max-pooling between blocks, global mean, dropout, dense.

    `kernel_init` is that of the convolutions; the last layer takes LeCun's 1 / fan_in.
    """

    widths: tuple[int, ...]
    activation: Activation
    kernel_init: nn.initializers.Initializer
    normalization: Callable[..., jax.Array]
    dropout: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, width in enumerate(self.widths):
            if i > 0:
                x = max_pool_2x2(x)
            block = Block(
                weights=partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=self.convolution, name="conv"),
                width=width,
                activation=self.activation,
                kernel_init=self.kernel_init,
                normalization=self.normalization,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


def cnn(
    *,
    widths: Sequence[int],
    activation: str,
    init: str,
    normalization: str,
    dropout: float,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
) -> nn.Module:
    """Builds `Cnn`. widths: channels of each block; the image is halved between blocks. dropout: rate, in [0, 1).

    activation, init, normalization: names in the tables of `models.layers`; init may be "auto".
    """
    if not widths:
        raise ValueError("cnn needs at least one width, e.g. widths=(32, 64)")
    return Cnn(
        widths=tuple(widths),
        activation=lookup("activation", activation, ACTIVATIONS),
        kernel_init=initializer(init, activation=activation),
        normalization=lookup("normalization", normalization, NORMALIZATIONS),
        dropout=dropout,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        convolution=convolution,
    )
