"""A small convolutional network, for small images and for tests."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import batch_norm, kaiming, max_pool_2x2


class Cnn(nn.Module):
    """One conv-norm-relu block for each width, 2x2 max-pooling between blocks, global mean, dropout, dense."""

    widths: tuple[int, ...]
    dropout: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for i, width in enumerate(self.widths):
            if i > 0:
                x = max_pool_2x2(x)
            x = ConvBlock(width, self.dtype, self.axis_name, name=f"block{i + 1}")(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU: [B, H, W, C] -> [B, H, W, width]."""

    width: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype, kernel_init=kaiming, name="conv")(x)
        return nn.relu(batch_norm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x))


def cnn(
    *, widths: Sequence[int], dropout: float, num_classes: int, dtype: jnp.dtype, axis_name: str | None
) -> nn.Module:
    """Builds `Cnn`. widths: channels of each block; the image is halved between blocks. dropout: rate, in [0, 1)."""
    if not widths:
        raise ValueError("cnn needs at least one width, e.g. widths=(32, 64)")
    return Cnn(tuple(widths), dropout, num_classes, dtype, axis_name)
