"""Scales of the channels of a feature map, from their means: float [B, H, W, C] -> the same shape and dtype."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Compute, kaiming


class SqueezeExcite(nn.Module, kw_only=True):
    """A hidden layer of `width`, and a scale in [0, 1], the `gate`, for each channel (Hu et al. 2018, section 3)."""

    width: int
    compute: Compute
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    kernel_init: nn.initializers.Initializer = kaiming

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv1x1 = partial(
            nn.Conv,
            kernel_size=(1, 1),
            dtype=self.compute.dtype,
            kernel_init=self.kernel_init,
            conv_general_dilated=self.compute.convolution,
        )
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = self.activation(conv1x1(self.width, name="fc1")(y))
        return x * self.gate(conv1x1(x.shape[-1], name="fc2")(y))


class EfficientAttention(nn.Module, kw_only=True):
    """The scale of a channel from the means of its neighbours: one convolution over the channels (Wang et al. 2020).

    Its size, eq. 12, is the least odd number from floor((log2(C) + 1) / 2) on, at least 3.
    """

    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = max(3, int((math.log2(x.shape[-1]) + 1) / 2) | 1)
        y = jnp.mean(x, axis=(1, 2))[..., None]
        y = nn.Conv(1, (size,), padding=size // 2, use_bias=False, dtype=self.compute.dtype, name="conv")(y)
        return x * nn.sigmoid(y[:, None, None, :, 0])


def squeeze_excite(x: jax.Array, *, ratio: float, compute: Compute, name: str) -> jax.Array:
    """`SqueezeExcite` whose hidden layer has C * ratio channels, to the nearest multiple of 8, at least 8."""
    width = max(8, int(x.shape[-1] * ratio + 4) // 8 * 8)
    return SqueezeExcite(width=width, compute=compute, name=name)(x)


def efficient_attention(x: jax.Array, *, compute: Compute, name: str) -> jax.Array:
    """`EfficientAttention` of x."""
    return EfficientAttention(compute=compute, name=name)(x)
