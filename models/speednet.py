"""A shallow, wide network that reaches a given accuracy in little compute, in the manner of the CIFAR-10 speed records.

After D. Page, "How to train your ResNet" (2018), and K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU"
(2024): a 2x2 stem, max-pooling right after the convolution that widens, normalisation without a learned scale, and
logits scaled down. Reached by large steps and few epochs, so its running statistics have a short memory.
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    Classifier,
    Compute,
    batch_norm,
    initializer,
    kaiming,
)
from linseed.models.pooling import global_max_pool, max_pool_2x2
from linseed.ranges import BelowOne, Count, Length, NonNegative, OneOf, Positive


class SpeedNet(Classifier, kw_only=True):
    """A 2x2 convolution, one SpeedBlock for each width, global max, dense, logits times `logit_scale`.

    Images at least 2 ** len(widths) + 1 pixels high and wide. The defaults are those of Jordan's record.
    """

    stem_width: Count = 24
    stem_bias_range: NonNegative = 12**-0.5  # the stem's bias starts uniform between minus this and this
    widths: Annotated[tuple[Count, ...], Length(1)] = (64, 256, 256)  # channels of each block, which halves the image
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu"
    kernel_init: Annotated[str, OneOf("auto", INITIALIZERS)] = "dirac"  # of the blocks' convolutions
    head_init: Annotated[str, OneOf("auto", INITIALIZERS)] = "unit_uniform"  # of the dense layer
    norm_momentum: BelowOne = 0.6  # of the running statistics: how much of the old is kept
    norm_eps: Positive = 1e-12  # added to the variance
    logit_scale: Positive = 1 / 256

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        stem = nn.Conv(
            self.stem_width * activation.pieces,
            (2, 2),
            padding="VALID",
            dtype=self.compute.dtype,
            kernel_init=kaiming,
            bias_init=_bias_init(self.stem_bias_range),
            conv_general_dilated=self.compute.convolution,
            name="stem",
        )
        x = activation.build("activation")(stem(images))
        for i, width in enumerate(self.widths):
            block = SpeedBlock(
                width=width,
                activation=self.activation,
                kernel_init=self.kernel_init,
                norm_momentum=self.norm_momentum,
                norm_eps=self.norm_eps,
                compute=self.compute,
                name=f"block{i + 1}",
            )
            x = block(x, train=train)
        x = global_max_pool(x)
        init = initializer(self.head_init, activation=self.activation)
        head = nn.Dense(self.num_classes, use_bias=False, dtype=self.compute.dtype, kernel_init=init, name="head")
        return head(x).astype(jnp.float32) * self.logit_scale


class SpeedBlock(nn.Module, kw_only=True):
    """Two 3x3 convolutions with a 2x2 max-pooling after the first: [B, H, W, C] -> [B, H // 2, W // 2, width]."""

    width: int
    activation: str
    kernel_init: str
    norm_momentum: float
    norm_eps: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        conv = partial(
            nn.Conv,
            self.width * activation.pieces,
            (3, 3),
            use_bias=False,
            dtype=self.compute.dtype,
            kernel_init=initializer(self.kernel_init, activation=self.activation),
            conv_general_dilated=self.compute.convolution,
        )
        norm = partial(
            batch_norm,
            train=train,
            compute=self.compute,
            momentum=self.norm_momentum,
            epsilon=self.norm_eps,
            use_scale=False,
        )
        x = max_pool_2x2(conv(name="conv1")(x))
        x = activation.build("activation1")(norm(name="norm1")(x))
        x = conv(name="conv2")(x)
        return activation.build("activation2")(norm(name="norm2")(x))


def _bias_init(half: float) -> nn.initializers.Initializer:
    if not half:
        return nn.initializers.zeros
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -half, half)
