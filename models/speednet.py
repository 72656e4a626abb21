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

from linseed.models.layers import (
    ACTIVATIONS,
    Activation,
    Convolution,
    batch_norm,
    initializer,
    kaiming,
    lookup,
    max_pool_2x2,
)


class SpeedNet(nn.Module):
    """A 2x2 convolution, one SpeedBlock for each width, global max, dense, logits times `logit_scale`.

    Images at least 2 ** len(widths) + 1 pixels high and wide.
    """

    stem_width: int
    stem_bias_range: float
    widths: tuple[int, ...]
    activation: Activation
    kernel_init: nn.initializers.Initializer
    head_init: nn.initializers.Initializer
    norm_momentum: float
    norm_eps: float
    logit_scale: float
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem = nn.Conv(
            self.stem_width * self.activation.pieces,
            (2, 2),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=kaiming,
            bias_init=_bias_init(self.stem_bias_range),
            conv_general_dilated=self.convolution,
            name="stem",
        )
        x = self.activation.build("activation")(stem(images))
        block = partial(
            SpeedBlock,
            activation=self.activation,
            kernel_init=self.kernel_init,
            norm_momentum=self.norm_momentum,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            axis_name=self.axis_name,
            convolution=self.convolution,
        )
        for i, width in enumerate(self.widths):
            x = block(width, name=f"block{i + 1}")(x, train=train)
        x = jnp.max(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, kernel_init=self.head_init, name="head")
        return head(x).astype(jnp.float32) * self.logit_scale


class SpeedBlock(nn.Module):
    """Two 3x3 convolutions with a 2x2 max-pooling after the first: [B, H, W, C] -> [B, H // 2, W // 2, width]."""

    width: int
    activation: Activation
    kernel_init: nn.initializers.Initializer
    norm_momentum: float
    norm_eps: float
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = self.width * self.activation.pieces
        conv = partial(
            nn.Conv,
            features,
            (3, 3),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            conv_general_dilated=self.convolution,
        )
        norm = partial(
            batch_norm,
            train=train,
            axis_name=self.axis_name,
            dtype=self.dtype,
            momentum=self.norm_momentum,
            epsilon=self.norm_eps,
            use_scale=False,
        )
        x = max_pool_2x2(conv(name="conv1")(x))
        x = self.activation.build("activation1")(norm(name="norm1")(x))
        x = conv(name="conv2")(x)
        return self.activation.build("activation2")(norm(name="norm2")(x))


def _bias_init(half: float) -> nn.initializers.Initializer:
    if not half:
        return nn.initializers.zeros
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -half, half)


def speednet(
    *,
    stem_width: int,
    stem_bias_range: float,
    widths: Sequence[int],
    activation: str,
    init: str,
    head_init: str,
    norm_momentum: float,
    norm_eps: float,
    logit_scale: float,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
) -> nn.Module:
    """Builds `SpeedNet`. activation, init: names of ACTIVATIONS and, or "auto", of INITIALIZERS.

    stem_bias_range: the stem's bias starts uniform between minus this and this; 0 for zeros. widths: channels of each
    block, which halves the image. init: of the blocks' convolutions; head_init: of the dense layer. norm_momentum: of
    the running statistics, how much of the old is kept; norm_eps: beside the variance. logit_scale: e.g. 1 / 9.
    """
    return SpeedNet(
        stem_width=stem_width,
        stem_bias_range=stem_bias_range,
        widths=tuple(widths),
        activation=lookup("activation", activation, ACTIVATIONS),
        kernel_init=initializer(init, activation=activation),
        head_init=initializer(head_init, activation=activation),
        norm_momentum=norm_momentum,
        norm_eps=norm_eps,
        logit_scale=logit_scale,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        convolution=convolution,
    )
