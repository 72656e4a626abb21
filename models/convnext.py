"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", section 2) and ConvNeXt V2 (Woo et al. 2023, "ConvNeXt V2:
co-designing and scaling ConvNets with masked autoencoders", section 3).

A residual network of depthwise convolutions, with layer normalisation where a ResNet has batch normalisation. The names
are timm's; `atto`, `femto`, `pico` and `nano` of version 1, and the overlapping stems of `*_ols`, are timm's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, Input, as_logits, gelu
from linseed.models.pooling import maximum
from linseed.ranges import BelowOne, NonNegative, Positive

# timm cuts this off at 2, a hundred standard deviations.
_kernel_init = nn.initializers.normal(0.02)


class GlobalResponseNorm(nn.Module):
    """x + scale * x * n + bias, n the norms of the channels over their mean: [B, H, W, C] -> same shape and dtype.

    The norm of a channel is over all places of an example (Woo et al. 2023, algorithm 1). Starts as the identity.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("scale", "bias"))
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Without the least value, a channel that is zero everywhere would have NaN for a gradient.
        norms = jnp.sqrt(maximum(jnp.sum(y * y, axis=(1, 2), keepdims=True), 1e-24))
        norms = norms / (jnp.mean(norms, axis=-1, keepdims=True) + 1e-6)
        return (y + scale * (y * norms) + bias).astype(x.dtype)


class _Module(nn.Module, kw_only=True):
    """width: features that it gives. norm_eps: epsilon of layer normalisation."""

    width: int
    norm_eps: float
    compute: Compute

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.compute.dtype, name=name)

    def _conv(self, width: int, size: int, *, name: str, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Conv:
        return nn.Conv(
            width,
            (size, size),
            stride,
            padding=padding,
            feature_group_count=groups,
            dtype=self.compute.dtype,
            kernel_init=_kernel_init,
            conv_general_dilated=self.compute.convolution,
            name=name,
        )


class PatchStem(_Module):
    """A linear map of patches of stride x stride: [B, H, W, C] -> [B, H // stride, W // stride, width]."""

    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self._conv(self.width, self.stride, stride=self.stride, name="layer1")(x)
        return self._norm("layer2")(x)


class OverlapStem(_Module):
    """Two 3x3 convolutions: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]. hidden: between them."""

    stride: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first = min(self.stride, 2)
        x = self._conv(self.hidden, 3, stride=first, padding=1, name="layer1")(x)
        x = self._conv(self.width, 3, stride=self.stride // first, padding=1, name="layer2")(x)
        return self._norm("layer3")(x)


class Downsample(_Module):
    """Layer normalisation and a 2x2 convolution of stride 2: [B, H, W, C] -> [B, H // 2, W // 2, width]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self._conv(self.width, 2, stride=2, name="conv")(self._norm("norm")(x))


class Block(_Module):
    """x and a branch: a 7x7 depthwise convolution and a network of one hidden layer at each place.

    [B, H, W, width] -> the same. version: 2 has `GlobalResponseNorm` in the hidden layer. pointwise: the hidden layer's
    kernels are [I, O] ("dense") or [1, 1, I, O] ("conv"). layer_scale: initial scale of the branch's channels, 0: no
    scale. drop_rate: how often the branch of an example is dropped in training.
    """

    version: Literal[1, 2]
    pointwise: Literal["conv", "dense"]
    layer_scale: float
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self._norm("norm")(self._conv(self.width, 7, padding=3, groups=self.width, name="depthwise")(x))
        y = gelu(self._pointwise(4 * self.width, "fc1")(y))
        if self.version == 2:
            y = GlobalResponseNorm(name="grn")(y)
        y = self._pointwise(self.width, "fc2")(y)
        if self.layer_scale:
            gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (self.width,))
            y = y * gamma.astype(y.dtype)
        # Stochastic depth, by example and scaled in training.
        return x + nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)

    def _pointwise(self, width, name):
        if self.pointwise == "conv":
            return self._conv(width, 1, name=name)
        return nn.Dense(width, dtype=self.compute.dtype, kernel_init=_kernel_init, name=name)


class ConvNeXt(Classifier, kw_only=True):
    """A stem, stages of blocks, global mean, layer normalisation, dense.

    Each stage but the first begins with a `Downsample`, and all have the same `block` but for its width. Block l of L
    is dropped in training at rate `drop_path * l / L`. stem_stride: 4 in the paper, for images near 224x224; 1 or 2 for
    images near 32x32. pre_logits: features of a hidden layer before the head, 0: none. dropout: before the head.
    """

    block: Callable[..., nn.Module]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Callable[..., nn.Module]
    pre_logits: int
    stem_stride: Literal[1, 2, 4] = 4
    layer_scale: NonNegative = 1e-6
    norm_eps: Positive = 1e-6
    drop_path: BelowOne = 0.0
    dropout: BelowOne = 0.0

    torch_names = (
        (r"stage(\d+)_", lambda match: f"stages/{int(match[1]) - 1}/"),
        (r"block(\d+)", lambda match: f"blocks/{int(match[1]) - 1}"),
        (r"layer(\d)", lambda match: str(int(match[1]) - 1)),
        (r"downsample/norm", "downsample/0"),
        (r"downsample/conv", "downsample/1"),
        (r"depthwise", "conv_dw"),
        (r"(fc\d|grn)", r"mlp/\1"),
        (r"^head", "head/fc"),
        (r"^norm", "head/norm"),
        (r"^pre_logits", "head/pre_logits/fc"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        norm = dict(norm_eps=self.norm_eps, compute=self.compute)
        x = self.stem(width=self.widths[0], stride=self.stem_stride, name="stem", **norm)(images)
        if min(x.shape[1:3]) < 2 ** (len(self.depths) - 1):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} are too small for stem_stride={self.stem_stride}: "
                f"set stem_stride=1 or use larger images"
            )
        layer = 0
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            if i > 1:
                x = Downsample(width=width, name=f"stage{i}_downsample", **norm)(x)
            for j in range(1, depth + 1):
                layer += 1
                rate = self.drop_path * layer / sum(self.depths)
                options = dict(layer_scale=self.layer_scale, drop_rate=rate, **norm)
                x = self.block(width=width, name=f"stage{i}_block{j}", **options)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.compute.dtype, name="norm")(x)
        dense = partial(nn.Dense, dtype=self.compute.dtype, kernel_init=_kernel_init)
        if self.pre_logits:
            x = gelu(dense(self.pre_logits, name="pre_logits")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return as_logits(dense(self.num_classes, name="head")(x))


# The width of the first stage, which doubles from stage to stage, and the depths.
_SIZES = {
    "atto": (40, (2, 2, 6, 2)),
    "femto": (48, (2, 2, 6, 2)),
    "pico": (64, (2, 2, 6, 2)),
    "nano": (80, (2, 2, 8, 2)),
    "tiny": (96, (3, 3, 9, 3)),
    "small": (96, (3, 3, 27, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
    "xlarge": (256, (3, 3, 27, 3)),
    "xxlarge": (384, (3, 4, 30, 3)),
    "huge": (352, (3, 3, 27, 3)),
}
_OVERLAPS = {"atto": 24, "femto": 24, "pico": 32, "nano": 80}  # features between the two convolutions


def _named(size, version=1, **fixed):
    width, depths = _SIZES[size]
    pointwise = "conv" if size in _OVERLAPS else "dense"
    fixed = dict(stem=PatchStem, pre_logits=0) | (dict(layer_scale=0.0) if version == 2 else {}) | fixed
    widths = tuple(width * 2**i for i in range(len(depths)))
    block = partial(Block, version=version, pointwise=pointwise)
    return partial(ConvNeXt, block=block, depths=depths, widths=widths, **fixed)


NAMES: dict[str, Callable[..., Classifier]] = {
    **{f"convnext_{size}": _named(size) for size in _SIZES if size not in ("huge", "xxlarge")},
    **{f"convnext_{s}_ols": _named(s, stem=partial(OverlapStem, hidden=n)) for s, n in _OVERLAPS.items()},
    "convnext_large_mlp": _named("large", pre_logits=1536),
    "convnext_xxlarge": _named("xxlarge", norm_eps=1e-5),
    **{f"convnextv2_{size}": _named(size, version=2) for size in _SIZES if size not in ("xlarge", "xxlarge")},
}

_CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
INPUTS: dict[str, Input] = {
    **{f"convnext_{size}": Input(crop=0.95) for size in ("pico_ols", "nano", "nano_ols", "tiny", "small")},
    "convnext_large_mlp": Input(320, crop=1.0, **_CLIP),
    "convnext_xxlarge": Input(256, crop=1.0, **_CLIP),
    "convnextv2_huge": Input(384, crop=1.0, fit="stretch"),
}
