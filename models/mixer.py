"""Networks that mix patches by linear maps over places: MLP-Mixer (Tolstikhin et al. 2021, "MLP-Mixer: an all-MLP
architecture for vision", section 2) and ResMLP (Touvron et al. 2021, "ResMLP: feedforward networks for image
classification with data-efficient training", section 2).

The names are timm's; `gmixer_*` are timm's own, with gated layers (Shazeer 2020, "GLU variants improve Transformer").
The kernels that mix places are for one size of images: the number of patches is one of their axes.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, Input, as_logits, gelu
from linseed.ranges import BelowOne, Count

_kernel_init = nn.initializers.xavier_uniform()


def _gate_kernel(key, shape, dtype):
    # timm's: the half that gates starts near zero, with a bias of one.
    value = _kernel_init(key, shape, dtype)[..., : shape[-1] // 2]
    return jnp.concatenate([value, 1e-6 * jax.random.normal(key, value.shape, dtype)], axis=-1)


def _gate_bias(key, shape, dtype):
    return jnp.repeat(jnp.array([0.0, 1.0], dtype), shape[-1] // 2)


class Mlp(nn.Module, kw_only=True):
    """One hidden layer with GELU: [..., F] -> [..., F]. hidden: its features."""

    hidden: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.compute.dtype, kernel_init=_kernel_init)
        return dense(x.shape[-1], name="fc2")(gelu(dense(self.hidden, name="fc1")(x)))


class GatedMlp(nn.Module, kw_only=True):
    """a * silu(b), a and b the halves of the hidden layer: [..., F] -> [..., F]. hidden: the features of both."""

    hidden: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.compute.dtype)
        y = dense(self.hidden, kernel_init=_gate_kernel, bias_init=_gate_bias, name="fc1")(x)
        value, gate = jnp.split(y, 2, axis=-1)
        return dense(x.shape[-1], kernel_init=_kernel_init, name="fc2")(value * nn.silu(gate))


class Affine(nn.Module, kw_only=True):
    """alpha x + beta, one of each for a feature: [B, N, F] -> [B, N, F] (Touvron et al. 2021, eq. 1)."""

    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1])
        alpha = self.param("alpha", nn.initializers.ones, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        return (alpha * x + beta).astype(self.compute.dtype)


def _layer_norm(*, compute: Compute, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=compute.dtype, name=name)


def _over_places(layer, x):
    """`layer` of the transposed map: [B, N, F] -> [B, N, F]."""
    return jnp.swapaxes(layer(jnp.swapaxes(x, 1, 2)), 1, 2)


def _stochastic_depth(rate: float, *, train: bool) -> nn.Dropout:
    """In training, drops the branch [N, F] of each example with probability `rate`, and scales up those kept."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)


class MixerBlock(nn.Module, kw_only=True):
    """x and a network over places, and that and a network over features: [B, N, F] -> [B, N, F].

    mlp: `Mlp` or `GatedMlp`. tokens, channels: hidden features of the two networks over F. drop_rate: of each branch.
    """

    mlp: Callable[..., nn.Module]
    tokens: float
    channels: float
    drop_rate: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        drop = partial(_stochastic_depth, self.drop_rate, train=train)
        norm = partial(_layer_norm, compute=self.compute)
        mlp = partial(self.mlp, compute=self.compute)
        width = x.shape[-1]
        mix = mlp(hidden=int(self.tokens * width), name="mlp_tokens")
        x = x + drop()(_over_places(mix, norm(name="norm1")(x)))
        return x + drop()(mlp(hidden=int(self.channels * width), name="mlp_channels")(norm(name="norm2")(x)))


class ResMlpBlock(nn.Module, kw_only=True):
    """x and a linear map over places, and that and a network over features: [B, N, F] -> [B, N, F].

    Both branches are scaled by features, at first by layer_scale. drop_rate: of each branch.
    """

    layer_scale: float
    drop_rate: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(Affine, compute=self.compute)
        mix = nn.Dense(x.shape[1], dtype=self.compute.dtype, kernel_init=_kernel_init, name="linear_tokens")
        mlp = Mlp(hidden=4 * x.shape[-1], compute=self.compute, name="mlp_channels")
        x = x + self._scaled(_over_places(mix, norm(name="norm1")(x)), "ls1", train=train)
        return x + self._scaled(mlp(norm(name="norm2")(x)), "ls2", train=train)

    def _scaled(self, y, name, *, train):
        scale = self.param(name, nn.initializers.constant(self.layer_scale), y.shape[-1:])
        return _stochastic_depth(self.drop_rate, train=train)(y * scale.astype(y.dtype))


class MlpMixer(Classifier, kw_only=True):
    """A linear map of patches, blocks, normalisation, mean over places, dense.

    width: features of a patch. norm: before the mean. patch_size: in pixels, must divide the image. Block l of L is
    dropped in training at rate `drop_path * l / L`. dropout: before the head, which starts at zero.
    """

    block: Callable[..., nn.Module]
    depth: int
    width: int
    norm: Callable[..., nn.Module]
    patch_size: Count = 16
    drop_path: BelowOne = 0.0
    dropout: BelowOne = 0.0

    torch_names = (
        (r"^stem", "stem/proj"),
        (r"^block(\d+)", lambda match: f"blocks/{int(match[1]) - 1}"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        count, height, width, _ = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height}x{width} are not whole patches of {self.patch_size}x{self.patch_size}: "
                f"use sides that are multiples of {self.patch_size}, or a smaller patch_size"
            )
        stem = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            self.patch_size,
            padding="VALID",
            dtype=self.compute.dtype,
            conv_general_dilated=self.compute.convolution,
            name="stem",
        )
        x = stem(images).reshape(count, -1, self.width)
        for i in range(1, self.depth + 1):
            block = self.block(drop_rate=self.drop_path * i / self.depth, compute=self.compute, name=f"block{i}")
            x = block(x, train=train)
        x = jnp.mean(self.norm(compute=self.compute, name="norm")(x), axis=1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        zeros = nn.initializers.zeros
        return as_logits(nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=zeros, name="head")(x))


def _mixer(depth, width, **fixed):
    block = partial(MixerBlock, mlp=Mlp, tokens=0.5, channels=4.0)
    return partial(MlpMixer, **dict(block=block, depth=depth, width=width, norm=_layer_norm) | fixed)


def _resmlp(depth, width, layer_scale, **fixed):
    block = partial(ResMlpBlock, layer_scale=layer_scale)
    return partial(MlpMixer, block=block, depth=depth, width=width, norm=Affine, **fixed)


_SIZES = {"s": (8, 512), "b": (12, 768), "l": (24, 1024)}  # depth and width: table 1 of Tolstikhin et al. 2021
_GATED = partial(MixerBlock, mlp=GatedMlp, tokens=1.0, channels=4.0)

NAMES: dict[str, Callable[..., Classifier]] = {
    **{f"mixer_{name}16_224": _mixer(*size) for name, size in _SIZES.items()},
    **{f"mixer_{name}32_224": _mixer(*size, patch_size=32) for name, size in _SIZES.items()},
    **{f"gmixer_{depth}_224": _mixer(depth, 384, block=_GATED) for depth in (12, 24)},
    "resmlp_12_224": _resmlp(12, 384, 1e-4),
    "resmlp_24_224": _resmlp(24, 384, 1e-5),
    "resmlp_36_224": _resmlp(36, 384, 1e-6),
    "resmlp_big_24_224": _resmlp(24, 768, 1e-6, patch_size=8),
}
INPUTS: dict[str, Input] = {
    name: Input(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) for name in NAMES if name.startswith("mixer")
}
