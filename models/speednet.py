"""A shallow, wide network that reaches a given accuracy in little compute, in the manner of the CIFAR-10 speed records.

After D. Page, "How to train your ResNet" (2018), and K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU"
(2024): a 2x2 stem, max-pooling right after the convolution that widens, normalisation without a learned scale, and
logits scaled down. Reached by large steps and few epochs, so its running statistics have a short memory.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import Convolution, batch_norm, kaiming, max_pool_2x2


class SpeedNet(nn.Module):
    """A 2x2 convolution, one SpeedBlock for each width, global max, dense, logits times `logit_scale`.

    Images at least 2 ** len(widths) + 1 pixels high and wide.
    """

    stem_width: int
    widths: tuple[int, ...]
    logit_scale: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem = nn.Conv(
            self.stem_width,
            (2, 2),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=kaiming,
            conv_general_dilated=self.convolution,
            name="stem",
        )
        x = nn.relu(stem(images))
        for i, width in enumerate(self.widths):
            x = SpeedBlock(width, self.dtype, self.axis_name, self.convolution, name=f"block{i + 1}")(x, train=train)
        x = jnp.max(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32) * self.logit_scale


class SpeedBlock(nn.Module):
    """Two 3x3 convolutions with a 2x2 max-pooling after the first: [B, H, W, C] -> [B, H // 2, W // 2, width]."""

    width: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(
            nn.Conv,
            self.width,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kaiming,
            conv_general_dilated=self.convolution,
        )
        norm = partial(
            batch_norm, train=train, axis_name=self.axis_name, dtype=self.dtype, momentum=0.6, use_scale=False
        )
        x = max_pool_2x2(conv(name="conv1")(x))
        x = nn.relu(norm(name="norm1")(x))
        x = conv(name="conv2")(x)
        return nn.relu(norm(name="norm2")(x))


def speednet(
    *,
    stem_width: int,
    widths: Sequence[int],
    logit_scale: float,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
) -> nn.Module:
    """Builds `SpeedNet`. widths: channels of each block, which halves the image; logit_scale: e.g. 1 / 9."""
    return SpeedNet(stem_width, tuple(widths), logit_scale, num_classes, dtype, axis_name, convolution)
