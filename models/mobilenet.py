"""MobileNetV2 (Sandler et al. 2018) and MobileNetV3 (Howard et al. 2019), under timm's names.

`tf_` networks pad as TensorFlow does and normalise with epsilon 1e-3. `minimal` ones have neither 5x5 convolutions nor
squeeze-and-excitation nor hard swish.
"""

from collections.abc import Callable
from functools import partial

from flax.linen import hard_sigmoid, hard_swish, relu, relu6

from linseed.models.inverted_residual import (
    ConvBlock,
    DepthwiseSeparable,
    InvertedResidual,
    InvertedResidualNet,
    Row,
    Stages,
    Style,
    conv_then_mean,
    make_block,
    mean_then_conv,
    rounded,
    scaled,
    tensorflow,
)
from linseed.models.layers import Classifier, Input

# Sandler et al. 2018, table 2.
_V2 = (
    (Row(DepthwiseSeparable, 1, 3, 1, 1, 16),),
    (Row(InvertedResidual, 2, 3, 2, 6, 24),),
    (Row(InvertedResidual, 3, 3, 2, 6, 32),),
    (Row(InvertedResidual, 4, 3, 2, 6, 64),),
    (Row(InvertedResidual, 3, 3, 1, 6, 96),),
    (Row(InvertedResidual, 3, 3, 2, 6, 160),),
    (Row(InvertedResidual, 1, 3, 1, 6, 320),),
)
mobilenet_v2 = partial(InvertedResidualNet, features=conv_then_mean, block=make_block, style=Style(relu6))


def _v2(width):
    """As in section 6.1: with less than the full width the layer of features keeps its own."""
    return partial(
        mobilenet_v2,
        stages=scaled(_V2, width=width),
        stem_width=rounded(32 * width),
        num_features=max(1280, rounded(1280 * width)),
    )


def _deeper_v2(width, depth):
    """The `d` variants of timm: stem, features and the number of blocks of the first and the last stage stay."""
    stages = scaled(_V2, width=width, depth=depth, keep_ends=True)
    return partial(mobilenet_v2, stages=stages, stem_width=32, num_features=1280)


# Howard et al. 2019, tables 1 and 2. The last stage is what they have before the mean.
_LARGE = (
    (Row(DepthwiseSeparable, 1, 3, 1, 1, 16, activation=relu),),
    (
        Row(InvertedResidual, 1, 3, 2, 4, 24, activation=relu),
        Row(InvertedResidual, 1, 3, 1, 3, 24, activation=relu),
    ),
    (Row(InvertedResidual, 3, 5, 2, 3, 40, squeeze=True, activation=relu),),
    (
        Row(InvertedResidual, 1, 3, 2, 6, 80),
        Row(InvertedResidual, 1, 3, 1, 2.5, 80),
        Row(InvertedResidual, 2, 3, 1, 2.3, 80),
    ),
    (Row(InvertedResidual, 2, 3, 1, 6, 112, squeeze=True),),
    (Row(InvertedResidual, 3, 5, 2, 6, 160, squeeze=True),),
    (Row(ConvBlock, 1, 1, 1, 1, 960),),
)
_SMALL = (
    (Row(DepthwiseSeparable, 1, 3, 2, 1, 16, squeeze=True, activation=relu),),
    (
        Row(InvertedResidual, 1, 3, 2, 4.5, 24, activation=relu),
        Row(InvertedResidual, 1, 3, 1, 3.67, 24, activation=relu),
    ),
    (
        Row(InvertedResidual, 1, 5, 2, 4, 40, squeeze=True),
        Row(InvertedResidual, 2, 5, 1, 6, 40, squeeze=True),
    ),
    (Row(InvertedResidual, 2, 5, 1, 3, 48, squeeze=True),),
    (Row(InvertedResidual, 3, 5, 2, 6, 96, squeeze=True),),
    (Row(ConvBlock, 1, 1, 1, 1, 576),),
)
_V3 = Style(
    hard_swish,
    squeeze=lambda inputs, expanded: rounded(expanded / 4),
    squeeze_activation=relu,
    gate=hard_sigmoid,
)
mobilenet_v3 = partial(InvertedResidualNet, features=mean_then_conv, block=make_block, stem_width=16)
large = partial(mobilenet_v3, num_features=1280)
small = partial(mobilenet_v3, num_features=1024)


def _minimal(stages: Stages) -> Stages:
    def simpler(row):
        return row._replace(kernel=min(row.kernel, 3), squeeze=False, activation=None)

    return tuple(tuple(map(simpler, stage)) for stage in stages)


def _by_timm() -> Callable[..., Classifier]:
    """`mobilenetv3_rw`: by timm's author, from the paper alone."""
    (first,), *rest = _LARGE
    return partial(
        large,
        stages=((first._replace(kind=partial(DepthwiseSeparable, shortcut=False)),), *rest),
        style=_V3._replace(squeeze=lambda inputs, expanded: round(expanded / 4), squeeze_activation=None, epsilon=1e-3),
        features=partial(mean_then_conv, use_bias=False),
    )


_PLAIN, _MINIMAL = tensorflow(_V3), tensorflow(Style(relu))
NAMES: dict[str, Callable[..., Classifier]] = {
    **{f"mobilenetv2_{width:03}": _v2(width / 100) for width in (35, 50, 75, 100, 140)},
    "mobilenetv2_110d": _deeper_v2(1.1, 1.2),
    "mobilenetv2_120d": _deeper_v2(1.2, 1.4),
    **{
        f"mobilenetv3_large_{width:03}": partial(large, stages=scaled(_LARGE, width=width / 100), style=_V3)
        for width in (75, 100)
    },
    **{
        f"mobilenetv3_small_{width:03}": partial(small, stages=scaled(_SMALL, width=width / 100), style=_V3)
        for width in (50, 75, 100)
    },
    "mobilenetv3_rw": _by_timm(),
    **{
        f"tf_mobilenetv3_{size}_{width:03}": partial(net, stages=scaled(stages, width=width / 100), style=_PLAIN)
        for size, net, stages in (("large", large, _LARGE), ("small", small, _SMALL))
        for width in (75, 100)
    },
    "tf_mobilenetv3_large_minimal_100": partial(large, stages=_minimal(_LARGE), style=_MINIMAL),
    "tf_mobilenetv3_small_minimal_100": partial(small, stages=_minimal(_SMALL), style=_MINIMAL),
}
INPUTS = {
    "mobilenetv3_large_075": Input(interpolation="bilinear"),
    **{
        name: Input(interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        for name in NAMES
        if name.startswith("tf_")
    },
}
