"""The multi-layer perceptron: fully connected layers on flattened images."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import ACTIVATIONS, NORMALIZATIONS, Activation, Block, Convolution, initializer, lookup


class Mlp(nn.Module):
    """Flattened images, one dense-norm-activation block and dropout for each width, dense.

    `kernel_init` is that of the hidden layers; the last, which no activation follows, takes LeCun's 1 / fan_in.
    """

    widths: tuple[int, ...]
    activation: Activation
    kernel_init: nn.initializers.Initializer
    normalization: Callable[..., jax.Array]
    dropout: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None

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
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


def mlp(
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
    """Builds `Mlp`. widths: features of each hidden layer. dropout: rate after each of them, in [0, 1).

    activation, init, normalization: names in the tables of `models.layers`; init may be "auto".
    """
    if not widths:
        raise ValueError("mlp needs at least one width, e.g. widths=(512, 512); without any it is model 'linear'")
    return Mlp(
        widths=tuple(widths),
        activation=lookup("activation", activation, ACTIVATIONS),
        kernel_init=initializer(init, activation=activation),
        normalization=lookup("normalization", normalization, NORMALIZATIONS),
        dropout=dropout,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
    )
