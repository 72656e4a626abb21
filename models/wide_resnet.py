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

from linseed.models.layers import Classifier, Compute, batch_norm, conv
from linseed.ranges import BelowOne


class PreActivationBlock(nn.Module, kw_only=True):
    """norm-ReLU-conv, norm-ReLU-dropout-conv, added to x: [B, H, W, C] -> [B, ceil(H / s), ceil(W / s), width].

    Where the number of channels changes, the shortcut is a 1x1 convolution of the first norm-ReLU, as the authors have
    it, instead of x.
    """

    width: int
    stride: int
    dropout: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        y = nn.relu(norm(name="norm1")(x))
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, compute=self.compute, name="shortcut_conv")(y)
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + conv(self.width, 3, 1, compute=self.compute, name="conv2")(y)


class WideResNet(Classifier, kw_only=True):
    """A 3x3 convolution, a stage of blocks for each width, norm-ReLU, global mean, dense.

    The first block of each stage but the first has stride 2. stage_size: blocks of a stage. dropout: rate between the
    convolutions of a block; 0.3 is what was published.
    """

    block: Callable[..., nn.Module]
    stage_size: int
    widths: tuple[int, ...]
    dropout: BelowOne = 0.3

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = conv(16, 3, 1, compute=self.compute, name="stem")(images)
        for i, width in enumerate(self.widths):
            for j in range(self.stage_size):
                block = self.block(
                    width=width,
                    stride=2 if i > 0 and j == 0 else 1,
                    dropout=self.dropout,
                    compute=self.compute,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
        x = nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))
        x = jnp.mean(x, axis=(1, 2))
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=init, name="head")(x).astype(
            jnp.float32
        )
