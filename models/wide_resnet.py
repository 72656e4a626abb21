"""Wide residual networks (Zagoruyko and Komodakis 2016), for 32x32 images.

Pre-activation blocks (He et al. 2016, "Identity mappings in deep residual networks") with dropout between their two
convolutions. `wide_resnet28_10` has 28 layers and ten times the width of a ResNet-26 of that family: 36.5 million
parameters.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Convolution, batch_norm, conv


class PreActivationBlock(nn.Module):
    """norm-ReLU-conv, norm-ReLU-dropout-conv, added to x: [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), width].

    Where the number of channels changes, the shortcut is a 1x1 convolution of the first norm-ReLU, as the authors have
    it, instead of x.
    """

    width: int
    stride: int
    dropout: float
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        y = nn.relu(norm(name="norm1")(x))
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, dtype=self.dtype, convolution=self.convolution, name="shortcut_conv")(
                y
            )
        y = conv(self.width, 3, self.stride, dtype=self.dtype, convolution=self.convolution, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + conv(self.width, 3, 1, dtype=self.dtype, convolution=self.convolution, name="conv2")(y)


class WideResNet(nn.Module):
    """A 3x3 convolution, a stage of blocks for each width, norm-ReLU, global mean, dense.

    The first block of each stage but the first has stride 2.
    """

    block: Callable[..., nn.Module]
    stage_size: int
    widths: tuple[int, ...]
    dropout: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = conv(16, 3, 1, dtype=self.dtype, convolution=self.convolution, name="stem")(images)
        for i, width in enumerate(self.widths):
            for j in range(self.stage_size):
                block = self.block(
                    width=width,
                    stride=2 if i > 0 and j == 0 else 1,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    convolution=self.convolution,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
        x = nn.relu(batch_norm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x))
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name="head")
        return head(x).astype(jnp.float32)


def wide_resnet28_10(
    *, dropout: float, num_classes: int, dtype: jnp.dtype, axis_name: str | None, convolution: Convolution
) -> nn.Module:
    """Builds `WideResNet` of 3 stages of 4 blocks, 160, 320 and 640 wide. dropout: in [0, 1); 0.3 published."""
    return WideResNet(PreActivationBlock, 4, (160, 320, 640), dropout, num_classes, dtype, axis_name, convolution)
