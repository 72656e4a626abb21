"""RegNet (Radosavovic et al. 2020, "Designing network design spaces").

The number in a name is the multiply-adds for a 224x224 image in units of 10^8. Y is X with squeeze-and-excitation.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from linseed.models.channel_attention import SqueezeExcite
from linseed.models.layers import Classifier, Input, as_logits, batch_norm, conv
from linseed.models.residual_blocks import ResidualBlock, project, stochastic_depth
from linseed.ranges import BelowOne, OneOf

# The stride of the 3x3 convolution at the start.
STEMS = {"cifar": 1, "imagenet": 2}


class RegNetBlock(ResidualBlock, kw_only=True):
    """1x1, grouped 3x3 and 1x1 convolutions: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width].

    group_width: channels of a group, `width` where that is less. se_ratio: hidden channels, over C, of the
    squeeze-and-excitation before the last convolution; 0 for none.
    """

    group_width: int
    se_ratio: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(batch_norm, train=train, compute=self.compute)
        groups = self.width // min(self.group_width, self.width)
        y = conv(self.width, 1, 1, compute=self.compute, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.width, 3, self.stride, compute=self.compute, name="conv2", groups=groups)(y)
        y = nn.relu(norm(name="norm2")(y))
        if self.se_ratio:
            y = SqueezeExcite(width=round(x.shape[-1] * self.se_ratio), compute=self.compute, name="se")(y)
        y = conv(self.width, 1, 1, compute=self.compute, name="conv3")(y)
        y = norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        x = project(x, self.width, stride=self.stride, train=train, compute=self.compute)
        return nn.relu(x + stochastic_depth(self.drop_rate, train=train)(y))


class RegNet(Classifier, kw_only=True):
    """A 3x3 convolution, stages of residual blocks, global mean, dense.

    The first block of each stage has stride 2. stage_sizes, widths: the blocks of each stage, and their channels. Block
    l of L is dropped in training at rate `drop_path * l / L` (Huang et al. 2016, eq. 4).
    """

    block: Callable[..., nn.Module]
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    drop_path: BelowOne = 0.0

    torch_names = (
        (r"stem_conv", "stem/conv"),
        (r"stem_norm", "stem/bn"),
        (r"stage(\d+)_block(\d+)", r"s\1/b\2"),
        (r"conv(\d)", r"conv\1/conv"),
        (r"norm(\d)", r"conv\1/bn"),
        (r"shortcut_conv", "downsample/conv"),
        (r"shortcut_norm", "downsample/bn"),
        (r"head", "head/fc"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = conv(32, 3, STEMS[self.stem], compute=self.compute, name="stem_conv")(images)
        x = nn.relu(batch_norm(train=train, compute=self.compute, name="stem_norm")(x))
        depth = 0
        for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for j in range(size):
                depth += 1
                block = self.block(
                    width=width,
                    stride=2 if j == 0 else 1,
                    drop_rate=self.drop_path * depth / sum(self.stage_sizes),
                    compute=self.compute,
                    name=f"stage{i + 1}_block{j + 1}",
                )
                x = block(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        init = nn.initializers.normal(0.01)
        return as_logits(nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=init, name="head")(x))


def stages(*, depth: int, initial: int, slope: float, factor: float, group_width: int) -> tuple[list[int], list[int]]:
    """Blocks and channels of each stage (section 3.3, eq. 2 to 4): w_0, w_a and w_m are initial, slope and factor.

    The channels are rounded to a multiple of 8, and then of `group_width`, or of themselves where that is more.
    """
    wanted = initial + slope * np.arange(depth)
    steps = np.round(np.log(wanted / initial) / np.log(factor))
    widths, sizes = np.unique(np.round(initial * factor**steps / 8) * 8, return_counts=True)
    groups = np.minimum(group_width, widths)
    return [int(size) for size in sizes], [int(width) for width in np.round(widths / groups) * groups]


def _regnet(depth, initial, slope, factor, group_width, *, se_ratio=0.0):
    sizes, widths = stages(depth=depth, initial=initial, slope=slope, factor=factor, group_width=group_width)
    block = partial(RegNetBlock, group_width=group_width, se_ratio=se_ratio)
    return partial(RegNet, block=block, stage_sizes=tuple(sizes), widths=tuple(widths))


# Arguments of `stages` in their order.
_X = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (22, 24, 24.48, 2.54, 16),
    "006": (16, 48, 36.97, 2.24, 24),
    "008": (16, 56, 35.73, 2.28, 16),
    "016": (18, 80, 34.01, 2.25, 24),
    "032": (25, 88, 26.31, 2.25, 48),
    "040": (23, 96, 38.65, 2.43, 40),
    "064": (17, 184, 60.83, 2.07, 56),
    "080": (23, 80, 49.56, 2.88, 120),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (22, 216, 55.59, 2.1, 128),
    "320": (23, 320, 69.86, 2.0, 168),
}
_Y = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (16, 48, 27.89, 2.09, 8),
    "006": (15, 48, 32.54, 2.32, 16),
    "008": (14, 56, 38.84, 2.4, 16),
    "016": (27, 48, 20.71, 2.65, 24),
    "032": (21, 80, 42.63, 2.66, 24),
    "040": (22, 96, 31.41, 2.24, 64),
    "064": (25, 112, 33.22, 2.27, 72),
    "080": (17, 192, 76.82, 2.19, 56),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (18, 200, 106.23, 2.48, 112),
    "320": (20, 232, 115.89, 2.53, 232),
    "640": (20, 352, 147.48, 2.4, 328),
    "1280": (27, 456, 160.83, 2.52, 264),
    "2560": (27, 640, 230.83, 2.53, 373),
}

# By timm's names.
NAMES: dict[str, Callable[..., Classifier]] = {
    **{f"regnetx_{size}": _regnet(*numbers) for size, numbers in _X.items()},
    **{f"regnety_{size}": _regnet(*numbers, se_ratio=0.25) for size, numbers in _Y.items()},
}
# Torchvision rounds to the group half up, and to no less than nine tenths.
_ROUNDED = {
    "regnetx_004": (32, 64, 160, 400),
    "regnety_008": (64, 144, 320, 784),
    "regnety_080": (224, 448, 896, 2016),
}
NAMES |= {f"{name}_tv": partial(NAMES[name], widths=widths) for name, widths in _ROUNDED.items()}

_INPUTS = {
    Input(crop=0.95): "regnety_032 regnety_040 regnety_064 regnety_080 regnety_120 regnety_160",
    Input(crop=0.965): "regnetx_008 regnetx_016 regnetx_032 regnetx_080 regnetx_160 regnetx_320 regnety_004 "
    "regnety_016 regnety_320 regnetx_004_tv regnety_008_tv regnety_080_tv",
    Input(384, crop=1.0): "regnety_640 regnety_1280 regnety_2560",
}
INPUTS = {name: made for made, names in _INPUTS.items() for name in names.split()}
