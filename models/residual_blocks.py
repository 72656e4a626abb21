"""The blocks of residual networks: a shortcut and a branch of convolutions, float [B, H, W, C] each.

Basic and bottleneck blocks as in He et al. 2015, figure 5, with the stride of a bottleneck in its 3x3 convolution
("v1.5"), projection shortcuts where the shape changes (option B), and the last normalisation scale starting at zero
(Goyal et al. 2017, section 5.1), so that every block starts as the identity. A block can be dropped in training (Huang
et al. 2016, "Deep networks with stochastic depth").
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Compute, batch_norm, conv


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


def project(
    x: jax.Array, features: int, *, stride: int, train: bool, compute: Compute, pooled: bool = False
) -> jax.Array:
    """The shortcut of a block: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

    Called in the compact method of the block. It is x where the shape stays, else a 1x1 convolution, with the stride or
    where `pooled` after the mean over windows ("ResNet-D", He et al. 2019, section 4.2). A window at an odd edge
    averages what is left.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    name = "pooled_shortcut" if pooled else "shortcut"
    if pooled and stride > 1:
        padding = [(0, -size % stride) for size in x.shape[1:3]]
        x = nn.avg_pool(x, (stride, stride), (stride, stride), padding, count_include_pad=False)
        stride = 1
    x = conv(features, 1, stride, compute=compute, name=f"{name}_conv")(x)
    return batch_norm(train=train, compute=compute, name=f"{name}_norm")(x)


class ProjectionBlock(ResidualBlock):
    """A residual block whose shortcut is a projection where the shape changes.

    pooled_shortcut: see `project`. attention: scales the channels of the branch, see `channel_attention`.
    """

    pooled_shortcut: bool = False
    attention: Callable[..., jax.Array] | None = None

    def add(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
        """Called in the compact method: the shortcut of x plus the branch y, and ReLU."""
        if self.attention:
            y = self.attention(y, compute=self.compute, name="se")
        features, pooled = y.shape[-1], self.pooled_shortcut
        x = project(x, features, stride=self.stride, train=train, compute=self.compute, pooled=pooled)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class BasicBlock(ProjectionBlock):
    """Two 3x3 convolutions: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, 1, compute=self.compute, name="conv2")(y)
        y = norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        return self.add(x, y, train=train)


class BottleneckBlock(ProjectionBlock):
    """1x1, 3x3 and 1x1 convolutions: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 * width].

    cardinality, base_width: groups of the 3x3 convolution, and the channels of each for every 64 of `width` (Xie et al.
    2017, "Aggregated residual transformations", table 1, C and d).
    """

    cardinality: int = 1
    base_width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        inner = self.width * self.base_width // 64 * self.cardinality
        y = conv(inner, 1, 1, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(inner, 3, self.stride, compute=self.compute, name="conv2", groups=self.cardinality)(y)
        y = nn.relu(norm(name="norm2")(y))
        y = conv(4 * self.width, 1, 1, compute=self.compute, name="conv3")(y)
        y = norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        return self.add(x, y, train=train)


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
