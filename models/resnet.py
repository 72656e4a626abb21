"""Residual networks (He et al. 2015, "Deep residual learning for image recognition").

`resnet18`, `resnet34`, `resnet50`, `resnet101` and `resnet152` are those of table 1, with the stride of a bottleneck in
its 3x3 convolution ("v1.5"), projection shortcuts where the shape changes (option B), and the last normalisation scale
of each block starting at zero (Goyal et al. 2017, section 5.1), so that every block starts as the identity. Their
blocks can be dropped in training (Huang et al. 2016, "Deep networks with stochastic depth").
`resnet20` ... `resnet110` are the 6n+2 layer networks of section 4.2 for 32x32 images, whose shortcuts have no
parameters (option A).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, batch_norm, conv, kaiming
from linseed.ranges import BelowOne, OneOf


def stochastic_depth(rate: float, *, train: bool) -> nn.Dropout:
    """In training, drops the residual branch, float [B, H, W, C], of each example with probability `rate`.

    Differs from Huang et al. 2016 in that each example draws for itself, not the batch as a whole, and that the
    branches kept are scaled by 1 / (1 - rate) in training, where theirs are scaled by 1 - rate in evaluation.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)


class ResidualBlock(nn.Module, kw_only=True):
    """A shortcut of x and a branch of convolutions that is added to it. drop_rate: see `stochastic_depth`."""

    width: int
    stride: int
    drop_rate: float
    compute: Compute


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions: [B, H, W, C] -> [B, H / stride, W / stride, width]."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, 1, compute=self.compute, name="conv2")(y)
        y = norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(self.width, 1, self.stride, compute=self.compute, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions: [B, H, W, C] -> [B, H / stride, W / stride, 4 * width]."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        y = conv(self.width, 1, 1, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = conv(4 * self.width, 1, 1, compute=self.compute, name="conv3")(y)
        y = norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(4 * self.width, 1, self.stride, compute=self.compute, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class PlainShortcutBlock(ResidualBlock):
    """Two 3x3 convolutions round option A: the shortcut drops pixels and pads channels with zeros.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width], width >= C.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, 1, compute=self.compute, name="conv2")(y)
        y = norm(name="norm2")(y)
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class ImagenetStem(nn.Module, kw_only=True):
    """7x7 convolution and 3x3 max-pooling, each with stride 2, for images near 224x224."""

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 7, 2, compute=self.compute, name="conv")(x)
        x = nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class CifarStem(nn.Module, kw_only=True):
    """3x3 convolution at full resolution, for images near 32x32."""

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 3, 1, compute=self.compute, name="conv")(x)
        return nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))


STEMS = {"cifar": CifarStem, "imagenet": ImagenetStem}


class ResNet(Classifier, kw_only=True):
    """A stem, stages of residual blocks, global mean, dense.

    The width doubles from stage to stage, and the first block of each stage but the first has stride 2. Block l of L is
    dropped in training at rate `drop_path * l / L` (Huang et al. 2016, eq. 4).
    """

    block: Callable[..., nn.Module]
    stage_sizes: tuple[int, ...]
    width: int
    head_init: nn.initializers.Initializer
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    drop_path: BelowOne = 0.0

    torch_names = (
        (r"stage(\d+)_block(\d+)", lambda match: f"layer{match[1]}/{int(match[2]) - 1}"),
        (r"stem/norm", "bn1"),
        (r"stem/conv", "conv1"),
        (r"shortcut_conv", "downsample/0"),
        (r"shortcut_norm", "downsample/1"),
        (r"norm(\d)", r"bn\1"),
        (r"head", "fc"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = STEMS[self.stem](width=self.width, compute=self.compute, name="stem")(images, train=train)
        depth = 0
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                depth += 1
                block = self.block(
                    width=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    drop_rate=self.drop_path * depth / sum(self.stage_sizes),
                    compute=self.compute,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=self.head_init, name="head")
        return head(x).astype(jnp.float32)


# Table 1, given `block` and `stage_sizes`; the head is that of Goyal et al. 2017, section 5.1.
imagenet_resnet = partial(ResNet, width=64, head_init=nn.initializers.normal(0.01))
# Section 4.2, given `stage_sizes`: three times n.
cifar_resnet = partial(ResNet, stem="cifar", block=PlainShortcutBlock, width=16, drop_path=0.0, head_init=kaiming)
