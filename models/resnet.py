"""Residual networks (He et al. 2015, "Deep residual learning for image recognition").

`resnet18`, `resnet34`, `resnet50`, `resnet101` and `resnet152` are those of table 1, `resnet20` ... `resnet110` the
6n+2 layer networks of section 4.2 for 32x32 images, whose shortcuts have no parameters (option A).

A letter after the number of layers names a stem and a shortcut (He et al. 2019, "Bag of tricks for image
classification", section 4.2): c and s have three 3x3 convolutions at the start, d and t also pooled shortcuts.
`resnext50_32x4d` has 32 groups of 4 channels in the 3x3 convolution of its first blocks (Xie et al. 2017),
`wide_resnet50_2` twice the channels there (Zagoruyko and Komodakis 2016). `se` and `eca` scale the channels of each
branch (Hu et al. 2018, Wang et al. 2020), and so does `resnetrs`, whose stem has no max-pooling (Bello et al. 2021).
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.channel_attention import efficient_attention, squeeze_excite
from linseed.models.layers import Classifier, Compute, Input, as_logits, batch_norm, conv, kaiming
from linseed.models.residual_blocks import BasicBlock, BottleneckBlock, PlainShortcutBlock
from linseed.ranges import BelowOne, OneOf


class CifarStem(nn.Module, kw_only=True):
    """3x3 convolution at full resolution, for images near 32x32."""

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 3, 1, compute=self.compute, name="conv")(x)
        return nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))


class ImagenetStem(nn.Module, kw_only=True):
    """7x7 convolution and 3x3 max-pooling, each with stride 2, for images near 224x224."""

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = conv(self.width, 7, 2, compute=self.compute, name="conv")(x)
        x = nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class DeepStem(nn.Module, kw_only=True):
    """Three 3x3 convolutions in place of the 7x7, the first with stride 2 ("ResNet-C", He et al. 2019, section 4.2).

    ratios: their channels over `width`. With a fourth, a convolution with stride 2 is in place of the max-pooling
    ("ResNet-RS", Bello et al. 2021).
    """

    width: int
    compute: Compute
    ratios: tuple[float, ...] = (0.5, 0.5, 1)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, ratio in enumerate(self.ratios, start=1):
            x = conv(int(self.width * ratio), 3, 2 if i in (1, 4) else 1, compute=self.compute, name=f"conv{i}")(x)
            x = nn.relu(batch_norm(train=train, compute=self.compute, name=f"norm{i}")(x))
        return x if len(self.ratios) > 3 else nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


STEMS = ("cifar", "imagenet")


class ResNet(Classifier, kw_only=True):
    """A stem, stages of residual blocks, global mean, dense.

    The width doubles from stage to stage, and the first block of each stage but the first has stride 2. Block l of L is
    dropped in training at rate `drop_path * l / L` (Huang et al. 2016, eq. 4). imagenet_stem: of stem "imagenet".
    """

    block: Callable[..., nn.Module]
    stage_sizes: tuple[int, ...]
    width: int
    head_init: nn.initializers.Initializer
    imagenet_stem: Callable[..., nn.Module] = ImagenetStem
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    drop_path: BelowOne = 0.0

    torch_names = (
        (r"stage(\d+)_block(\d+)", lambda match: f"layer{match[1]}/{int(match[2]) - 1}"),
        (r"stem/conv4", "maxpool/0"),
        (r"stem/norm4", "maxpool/1"),
        (r"stem/conv(\d)", lambda match: f"conv1/{3 * int(match[1]) - 3}"),
        (r"stem/norm([12])", lambda match: f"conv1/{3 * int(match[1]) - 2}"),
        (r"stem/norm3?", "bn1"),
        (r"stem/conv$", "conv1"),
        (r"pooled_shortcut_conv", "downsample/1"),
        (r"pooled_shortcut_norm", "downsample/2"),
        (r"shortcut_conv", "downsample/0"),
        (r"shortcut_norm", "downsample/1"),
        (r"norm(\d)", r"bn\1"),
        (r"head", "fc"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        stem = {"cifar": CifarStem, "imagenet": self.imagenet_stem}[self.stem]
        x = stem(width=self.width, compute=self.compute, name="stem")(images, train=train)
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
        return as_logits(head(x))


# Table 1, given `block` and `stage_sizes`; the head is that of Goyal et al. 2017, section 5.1.
imagenet_resnet = partial(ResNet, imagenet_stem=ImagenetStem, width=64, head_init=nn.initializers.normal(0.01))
# Section 4.2, given `stage_sizes`: three times n.
cifar_resnet = partial(
    ResNet,
    imagenet_stem=ImagenetStem,
    stem="cifar",
    block=PlainShortcutBlock,
    width=16,
    drop_path=0.0,
    head_init=kaiming,
)

# The blocks of each stage, by the number of layers.
_BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECK |= {200: (3, 24, 36, 3), 269: (3, 30, 48, 8)}
_RS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 270: (4, 29, 53, 4)}
_RS |= {350: (4, 36, 72, 4), 420: (4, 44, 87, 4)}

# By the letter after the number of layers: the stem, and which have a pooled shortcut.
_STEMS = {
    "": ImagenetStem,
    "c": DeepStem,
    "d": DeepStem,
    "s": partial(DeepStem, ratios=(1, 1, 2)),
    "t": partial(DeepStem, ratios=(0.375, 0.5, 1)),
}
_POOLED = ("d", "t")


def _resnet(size, **of_block):
    """size: layers, version, cardinality and base width: "50", "50d", "50d_32x4d"."""
    layers, version, cardinality, width = re.fullmatch(r"(\d+)([cdst]?)(?:_(\d+)x(\d+)d)?", size).groups()
    block = partial(BasicBlock if int(layers) in _BASIC else BottleneckBlock, pooled_shortcut=version in _POOLED)
    if cardinality:
        block = partial(block, cardinality=int(cardinality), base_width=int(width))
    return partial(
        imagenet_resnet,
        imagenet_stem=_STEMS[version],
        block=partial(block, **of_block),
        stage_sizes=(_BASIC | _BOTTLENECK)[int(layers)],
    )


_SE = dict(attention=partial(squeeze_excite, ratio=1 / 16))
_ECA = dict(attention=efficient_attention)
_NETWORKS = {
    "resnet": (
        {},
        "10t 14t 18 18d 26 26d 26t 34 34d 50 50c 50d 50s 50t 101 101c 101d 101s 152 152c 152d 152s 200 200d",
    ),
    "resnext": ({}, "50_32x4d 50d_32x4d 101_32x4d 101_32x8d 101_32x16d 101_32x32d 101_64x4d"),
    "seresnet": (_SE, "18 34 50 50t 101 152 152d 200d 269d"),
    "seresnext": (_SE, "26d_32x4d 26t_32x4d 50_32x4d 101_32x4d 101_32x8d 101d_32x8d 101_64x4d"),
    "ecaresnet": (_ECA, "26t 50d 50t 101d 200d 269d"),
    "ecaresnext": (_ECA, "26t_32x4d 50t_32x4d"),
}

# By timm's names.
NAMES: dict[str, Callable[..., Classifier]] = {
    f"{family}{size}": _resnet(size, **of_block)
    for family, (of_block, sizes) in _NETWORKS.items()
    for size in sizes.split()
}
NAMES |= {f"wide_resnet{layers}_2": _resnet(layers, base_width=128) for layers in ("50", "101")}
NAMES["ecaresnetlight"] = partial(
    imagenet_resnet, block=partial(BottleneckBlock, pooled_shortcut=True, **_ECA), stage_sizes=(1, 1, 11, 3)
)
NAMES |= {
    f"resnetrs{layers}": partial(
        imagenet_resnet,
        imagenet_stem=partial(DeepStem, ratios=(0.5, 0.5, 1, 1)),
        block=partial(BottleneckBlock, pooled_shortcut=True, attention=partial(squeeze_excite, ratio=1 / 4)),
        stage_sizes=sizes,
    )
    for layers, sizes in _RS.items()
}

_INPUTS = {
    Input(160, crop=0.91): "resnetrs50",
    Input(176): "resnet10t resnet14t",
    Input(192, crop=0.94): "resnetrs101",
    Input(crop=0.95): "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_64x4d seresnet50 "
    "seresnext101_32x8d seresnext101d_32x8d",
    Input(interpolation="bilinear"): "resnext101_32x4d resnext101_32x8d resnext101_32x16d resnext101_32x32d "
    "wide_resnet101_2",
    Input(256): "ecaresnet26t ecaresnet50t seresnet200d seresnet269d",
    Input(256, crop=0.94): "resnet26t",
    Input(256, crop=0.95): "resnet101d resnet152d resnet200d seresnet152d ecaresnet200d",
    Input(256, crop=1.0): "resnetrs152 resnetrs200 resnetrs270",
    Input(288, crop=1.0): "resnetrs350",
    Input(320, crop=0.95): "ecaresnet269d",
    Input(320, crop=1.0): "resnetrs420",
}
INPUTS = {name: made for made, names in _INPUTS.items() for name in names.split()}
