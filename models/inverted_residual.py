"""Networks of inverted residual blocks (Sandler et al. 2018): what EfficientNets and MobileNets have in common.

An inverted residual block is wide inside and narrow outside, a bottleneck block the other way round. Its 3x3 or 5x5
convolution is depthwise: each channel has one filter of its own.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.channel_attention import SqueezeExcite
from linseed.models.layers import Classifier, Compute, as_logits, batch_norm
from linseed.models.residual_blocks import stochastic_depth
from linseed.ranges import BelowOne, OneOf

Function = Callable[[jax.Array], jax.Array]

# As in TensorFlow's implementations: normal with variance 2 / fan_out, where each group of a convolution counts for
# itself, so that a depthwise filter has 2 / (height * width); the head uniform within 1 / sqrt(classes).
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_head_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


class Style(NamedTuple):
    """What is the same in all blocks of a network."""

    activation: Function
    squeeze: Callable[[int, int], int] = lambda inputs, expanded: round(inputs / 4)  # width of squeeze-and-excitation
    squeeze_activation: Function | None = None  # None: that of the block
    gate: Function = nn.sigmoid
    epsilon: float = 1e-5  # of batch normalisation
    padding: str = "alike"  # as many zeros on both sides, as in PyTorch; "SAME" as in TensorFlow


def tensorflow(style: Style) -> Style:
    """`style` with the padding and the epsilon of networks that were trained in TensorFlow."""
    return style._replace(epsilon=1e-3, padding="SAME")


class Row(NamedTuple):
    """A row of the table that describes a network: `blocks` blocks, of which the first has the stride."""

    kind: Callable[..., nn.Module]
    blocks: int
    kernel: int
    stride: int
    expansion: float  # width inside the block over that of its input
    width: int  # channels of the output
    squeeze: bool = False  # whether there is squeeze-and-excitation
    activation: Function | None = None  # None: that of the style


Stages = tuple[tuple[Row, ...], ...]


def rounded(width: float, *, least: float = 0.9) -> int:
    """The multiple of eight nearest to `width` that is at least 8 and `least * width`."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= least * width else nearest + 8


def scaled(stages: Stages, *, width: float, depth: float = 1.0, least: float = 0.9, keep_ends: bool = False) -> Stages:
    """`stages` with `width` times the channels, see `rounded`, and `depth` times the blocks, rounded up.

    Where `keep_ends`, the first and the last stage keep their number of blocks.
    """
    ends = (0, len(stages) - 1) if keep_ends else ()

    def scale(row, factor):
        return row._replace(width=rounded(row.width * width, least=least), blocks=math.ceil(row.blocks * factor))

    return tuple(tuple(scale(row, 1.0 if i in ends else depth) for row in stage) for i, stage in enumerate(stages))


def _conv(width, kernel=1, stride=1, *, style, compute, name, depthwise=False, use_bias=False):
    return nn.Conv(
        width,
        (kernel, kernel),
        stride,
        padding=kernel // 2 if style.padding == "alike" else style.padding,
        feature_group_count=width if depthwise else 1,
        use_bias=use_bias,
        dtype=compute.dtype,
        kernel_init=_he_depthwise if depthwise else _he_fan_out,
        conv_general_dilated=compute.convolution,
        name=name,
    )


class MobileBlock(nn.Module, kw_only=True):
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width], called as `block(x, train=...)`.

    Where neither stride nor width changes the shape, and `shortcut` is set, x is added to the result, which training
    drops at `drop_rate`, see `stochastic_depth`. The other fields are those of `Row`.
    """

    width: int
    kernel: int
    stride: int
    style: Style
    compute: Compute
    expansion: float = 1.0
    squeeze: bool = False
    activation: Function | None = None
    drop_rate: float = 0.0
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = partial(_conv, style=self.style, compute=self.compute)
        norm = partial(batch_norm, train=train, compute=self.compute, epsilon=self.style.epsilon)
        y = self.branch(x, conv, norm, self.activation or self.style.activation)
        if not self.shortcut or self.stride > 1 or x.shape != y.shape:
            return y
        return x + stochastic_depth(self.drop_rate, train=train)(y)

    def branch(
        self, x: jax.Array, conv: Callable[..., Any], norm: Callable[..., Any], activation: Function
    ) -> jax.Array:
        """The layers of the block. conv, norm: make a layer, given its sizes and its name."""
        raise NotImplementedError

    def squeezed(self, y: jax.Array, *, inputs: int, activation: Function) -> jax.Array:
        """y after squeeze-and-excitation, if the block has one. inputs: channels of the input of the block."""
        if not self.squeeze:
            return y
        excite = SqueezeExcite(
            width=self.style.squeeze(inputs, y.shape[-1]),
            activation=self.style.squeeze_activation or activation,
            gate=self.style.gate,
            kernel_init=_he_fan_out,
            compute=self.compute,
            name="squeeze",
        )
        return excite(y)


class ConvBlock(MobileBlock):
    """One convolution, normalisation and activation."""

    def branch(self, x, conv, norm, activation):
        return activation(norm(name="norm1")(conv(self.width, self.kernel, self.stride, name="conv")(x)))


class DepthwiseSeparable(MobileBlock):
    """A depthwise convolution, then a 1x1 convolution without activation (Howard et al. 2017, "MobileNets")."""

    def branch(self, x, conv, norm, activation):
        inputs = x.shape[-1]
        y = conv(inputs, self.kernel, self.stride, depthwise=True, name="depthwise")(x)
        y = self.squeezed(activation(norm(name="norm1")(y)), inputs=inputs, activation=activation)
        return norm(name="norm2")(conv(self.width, name="pointwise")(y))


class InvertedResidual(MobileBlock):
    """1x1, depthwise and 1x1 convolutions, no activation after the last (Sandler et al. 2018, section 3.4): MBConv."""

    def branch(self, x, conv, norm, activation):
        inputs = x.shape[-1]
        width = rounded(inputs * self.expansion)
        y = activation(norm(name="norm1")(conv(width, name="expand")(x)))
        y = conv(width, self.kernel, self.stride, depthwise=True, name="depthwise")(y)
        y = self.squeezed(activation(norm(name="norm2")(y)), inputs=inputs, activation=activation)
        return norm(name="norm3")(conv(self.width, name="project")(y))


class FusedInvertedResidual(MobileBlock):
    """The first two convolutions of an inverted residual as one (Tan and Le 2021, figure 2): Fused-MBConv."""

    def branch(self, x, conv, norm, activation):
        inputs = x.shape[-1]
        y = conv(rounded(inputs * self.expansion), self.kernel, self.stride, name="fused")(x)
        y = self.squeezed(activation(norm(name="norm1")(y)), inputs=inputs, activation=activation)
        return norm(name="norm2")(conv(self.width, name="project")(y))


def make_block(*, kind: Callable[..., nn.Module], **fields: Any) -> nn.Module:
    """The block of `kind`, one of the classes above or a partial of one."""
    return kind(**fields)


def conv_then_mean(x: jax.Array, *, width: int, style: Style, compute: Compute, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B, width]: a 1x1 convolution, normalisation and activation, then the mean over all places."""
    conv = ConvBlock(width=width, kernel=1, stride=1, shortcut=False, style=style, compute=compute, name="features")
    return jnp.mean(conv(x, train=train), axis=(1, 2))


def mean_then_conv(
    x: jax.Array, *, width: int, style: Style, compute: Compute, train: bool, use_bias: bool = True
) -> jax.Array:
    """[B, H, W, C] -> [B, width]: the mean over all places, then a 1x1 convolution and activation."""
    conv = _conv(width, style=style, compute=compute, use_bias=use_bias, name="features")
    return style.activation(conv(jnp.mean(x, axis=(1, 2), keepdims=True)))[:, 0, 0]


# The first strides of two that become one: with "cifar" the last feature map is an eighth of the image, not a 32nd.
STEMS = {"cifar": 2, "imagenet": 0}


class InvertedResidualNet(Classifier, kw_only=True):
    """A stem, stages of blocks, a layer of features, dense.

    Images of any size. `stem="cifar"`, for images near 32x32, leaves out the stride of the stem and that of the first
    stage that has one. Block l of L is dropped in training at rate `drop_path * l / L` (Huang et al. 2016, eq. 4).
    Batch normalisation averages with momentum 0.9.
    """

    stages: Stages
    style: Style
    stem_width: int
    num_features: int  # what `features` gives the head
    features: Callable[..., jax.Array]
    block: Callable[..., nn.Module]
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    drop_path: BelowOne = 0.0
    dropout: BelowOne = 0.0

    torch_names = (
        (r"^stage(\d+)_block(\d+)", lambda match: f"blocks/{int(match[1]) - 1}/{int(match[2]) - 1}"),
        (r"^stem/conv", "conv_stem"),
        (r"^stem/norm1", "bn1"),
        (r"^features(/conv)?$", "conv_head"),
        (r"^features/norm1", "bn2"),
        (r"^head", "classifier"),
        (r"norm(\d)", r"bn\1"),
        (r"expand|pointwise", "conv_pw"),
        (r"depthwise", "conv_dw"),
        (r"project", "conv_pwl"),
        (r"fused", "conv_exp"),
        (r"squeeze/fc1", "se/conv_reduce"),
        (r"squeeze/fc2", "se/conv_expand"),
    )

    @property
    def other_names(self):
        """Those of EfficientNet-PyTorch, which pads as TensorFlow does and counts blocks from the first to the last."""
        if self.style.padding != "SAME":
            return ()
        first = [sum(row.blocks for stage in self.stages[:i] for row in stage) for i in range(len(self.stages))]

        def block(match):
            stage, place = int(match[1]) - 1, int(match[2]) - 1
            has_expansion = self.stages[stage][0].kind is not DepthwiseSeparable
            rest = re.sub(r"norm(\d)", lambda norm: f"_bn{int(norm[1]) - has_expansion}", match[3])
            return f"_blocks/{first[stage] + place}{rest}"

        rules = (
            (r"^stage(\d+)_block(\d+)(.*)", block),
            (r"^stem/conv", "_conv_stem"),
            (r"^stem/norm1", "_bn0"),
            (r"^features/conv", "_conv_head"),
            (r"^features/norm1", "_bn1"),
            (r"^head", "_fc"),
            (r"squeeze/fc1", "_se_reduce"),
            (r"squeeze/fc2", "_se_expand"),
            (r"/expand$", "/_expand_conv"),
            (r"/depthwise", "/_depthwise_conv"),
            (r"/(pointwise|project)$", "/_project_conv"),
        )
        return (rules,)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        common = dict(style=self.style, compute=self.compute)
        left_out = [1] * STEMS[self.stem]

        def stride(size):
            return left_out.pop() if size > 1 and left_out else size

        x = ConvBlock(width=self.stem_width, kernel=3, stride=stride(2), name="stem", **common)(images, train=train)
        depth, blocks = 0, sum(row.blocks for stage in self.stages for row in stage)
        for i, stage in enumerate(self.stages):
            rows = [row._replace(stride=row.stride if j == 0 else 1) for row in stage for j in range(row.blocks)]
            for j, row in enumerate(rows):
                depth += 1
                block = self.block(
                    kind=row.kind,
                    width=row.width,
                    kernel=row.kernel,
                    stride=stride(row.stride),
                    expansion=row.expansion,
                    squeeze=row.squeeze,
                    activation=row.activation,
                    drop_rate=self.drop_path * depth / blocks,
                    name=f"stage{i + 1}_block{j + 1}",
                    **common,
                )
                x = block(x, train=train)
        x = self.features(x, width=self.num_features, train=train, **common)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        head = nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=_head_init, name="head")
        return as_logits(head(x))
