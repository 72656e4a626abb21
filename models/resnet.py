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

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Convolution, batch_norm, conv, kaiming, lookup


def stochastic_depth(rate: float, *, train: bool) -> nn.Dropout:
    """In training, drops the residual branch, float [B, H, W, C], of each example with probability `rate`.

    Differs from Huang et al. 2016 in that each example draws for itself, not the batch as a whole, and that the
    branches kept are scaled by 1 / (1 - rate) in training, where theirs are scaled by 1 - rate in evaluation.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [B, H, W, C] -> [B, H / stride, W / stride, width]."""

    width: int
    stride: int
    drop_rate: float
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        y = conv(self.width, 3, self.stride, dtype=self.dtype, convolution=self.convolution, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, 1, dtype=self.dtype, convolution=self.convolution, name="conv2")(y)
        y = norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(self.width, 1, self.stride, dtype=self.dtype, convolution=self.convolution, name="shortcut_conv")(
                x
            )
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: [B, H, W, C] -> [B, H / stride, W / stride, 4 * width]."""

    width: int
    stride: int
    drop_rate: float
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        y = conv(self.width, 1, 1, dtype=self.dtype, convolution=self.convolution, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, self.stride, dtype=self.dtype, convolution=self.convolution, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = conv(4 * self.width, 1, 1, dtype=self.dtype, convolution=self.convolution, name="conv3")(y)
        y = norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(
                4 * self.width, 1, self.stride, dtype=self.dtype, convolution=self.convolution, name="shortcut_conv"
            )(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class PlainShortcutBlock(nn.Module):
    """Two 3x3 convolutions round option A: the shortcut drops pixels and pads channels with zeros.

    [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width], width >= C.
    """

    width: int
    stride: int
    drop_rate: float
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        y = conv(self.width, 3, self.stride, dtype=self.dtype, convolution=self.convolution, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, 1, dtype=self.dtype, convolution=self.convolution, name="conv2")(y)
        y = norm(name="norm2")(y)
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class ImagenetStem(nn.Module):
    """7x7 convolution and 3x3 max-pooling, each with stride 2, for images near 224x224."""

    width: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 7, 2, dtype=self.dtype, convolution=self.convolution, name="conv")(x)
        x = nn.relu(batch_norm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class CifarStem(nn.Module):
    """3x3 convolution at full resolution, for images near 32x32."""

    width: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 3, 1, dtype=self.dtype, convolution=self.convolution, name="conv")(x)
        return nn.relu(batch_norm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x))


STEMS = {"cifar": CifarStem, "imagenet": ImagenetStem}


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global mean, dense.

    The width doubles from stage to stage, and the first block of each stage but the first has stride 2. Block l of L is
    dropped in training at rate `drop_path * l / L` (Huang et al. 2016, eq. 4).
    """

    stem: Callable[..., nn.Module]
    block: Callable[..., nn.Module]
    stage_sizes: tuple[int, ...]
    width: int
    drop_path: float
    head_init: nn.initializers.Initializer
    num_classes: int
    dtype: jnp.dtype
    axis_name: str | None
    convolution: Convolution

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.stem(self.width, self.dtype, self.axis_name, self.convolution, name="stem")(images, train=train)
        depth = 0
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                depth += 1
                block = self.block(
                    width=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    drop_rate=self.drop_path * depth / sum(self.stage_sizes),
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    convolution=self.convolution,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=self.head_init, name="head")
        return head(x).astype(jnp.float32)


def _imagenet_resnet(
    block: Callable[..., nn.Module],
    stage_sizes: tuple[int, ...],
    /,
    *,
    stem: str,
    drop_path: float,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
) -> ResNet:
    """Builds a network of table 1. stem: a name in STEMS. drop_path: rate of the last block, in [0, 1); 0 is none."""
    return ResNet(
        stem=lookup("stem", stem, STEMS),
        block=block,
        stage_sizes=stage_sizes,
        width=64,
        drop_path=drop_path,
        head_init=nn.initializers.normal(0.01),  # Goyal et al. 2017, section 5.1
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        convolution=convolution,
    )


def _cifar_resnet(
    depth: int, /, *, num_classes: int, dtype: jnp.dtype, axis_name: str | None, convolution: Convolution
) -> ResNet:
    """Builds a network of section 4.2 with `depth` = 6n+2 weighted layers."""
    return ResNet(
        stem=CifarStem,
        block=PlainShortcutBlock,
        stage_sizes=((depth - 2) // 6,) * 3,
        width=16,
        drop_path=0.0,
        head_init=kaiming,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        convolution=convolution,
    )


resnet18 = partial(_imagenet_resnet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(_imagenet_resnet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(_imagenet_resnet, BottleneckBlock, (3, 4, 6, 3))
resnet101 = partial(_imagenet_resnet, BottleneckBlock, (3, 4, 23, 3))
resnet152 = partial(_imagenet_resnet, BottleneckBlock, (3, 8, 36, 3))

resnet20 = partial(_cifar_resnet, 20)
resnet32 = partial(_cifar_resnet, 32)
resnet44 = partial(_cifar_resnet, 44)
resnet56 = partial(_cifar_resnet, 56)
resnet110 = partial(_cifar_resnet, 110)
