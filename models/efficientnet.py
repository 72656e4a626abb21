"""EfficientNets (Tan and Le 2019; Lite: 2020; V2: Tan and Le 2021, "EfficientNetV2").

Names, widths and epsilon are those of timm. `tf_` networks pad as TensorFlow does and normalise with epsilon 1e-3.
"""

from collections.abc import Callable, Sequence
from functools import partial

from flax.linen import relu6, silu

from linseed.models.inverted_residual import (
    ConvBlock,
    DepthwiseSeparable,
    FusedInvertedResidual,
    InvertedResidual,
    InvertedResidualNet,
    Row,
    Style,
    conv_then_mean,
    make_block,
    rounded,
    scaled,
    tensorflow,
)
from linseed.models.layers import Classifier, Input

efficientnet = partial(InvertedResidualNet, features=conv_then_mean, block=make_block)

# Tan and Le 2019, table 1.
_B0 = (
    (Row(DepthwiseSeparable, 1, 3, 1, 1, 16, True),),
    (Row(InvertedResidual, 2, 3, 2, 6, 24, True),),
    (Row(InvertedResidual, 2, 5, 2, 6, 40, True),),
    (Row(InvertedResidual, 3, 3, 2, 6, 80, True),),
    (Row(InvertedResidual, 3, 5, 1, 6, 112, True),),
    (Row(InvertedResidual, 4, 5, 2, 6, 192, True),),
    (Row(InvertedResidual, 1, 3, 1, 6, 320, True),),
)
_LITE0 = tuple((row._replace(squeeze=False),) for (row,) in _B0)


def _v2(fused: Sequence[Sequence[int]], inverted: Sequence[Sequence[int]], *, first=ConvBlock):
    """The stages of an EfficientNetV2: the first without expansion, then Fused-MBConv, then MBConv.

    fused: (blocks, width). inverted: (blocks, stride, expansion, width).
    """
    (blocks, width), *fused = fused
    return (
        (Row(first, blocks, 3, 1, 1, width),),
        *((Row(FusedInvertedResidual, blocks, 3, 2, 4, width),) for blocks, width in fused),
        *((Row(InvertedResidual, blocks, 3, *rest, True),) for blocks, *rest in inverted),
    )


_V2 = {
    "b": _v2(((1, 16), (2, 32), (2, 48)), ((3, 2, 4, 96), (5, 1, 6, 112), (8, 2, 6, 192))),
    "s": _v2(((2, 24), (4, 48), (4, 64)), ((6, 2, 4, 128), (9, 1, 6, 160), (15, 2, 6, 256))),  # table 4
    "m": _v2(((3, 24), (5, 48), (5, 80)), ((7, 2, 4, 160), (14, 1, 6, 176), (18, 2, 6, 304), (5, 1, 6, 512))),
    "l": _v2(((4, 32), (7, 64), (7, 96)), ((10, 2, 4, 192), (19, 1, 6, 224), (25, 2, 6, 384), (7, 1, 6, 640))),
    "xl": _v2(((4, 32), (8, 64), (8, 96)), ((16, 2, 4, 192), (24, 1, 6, 256), (32, 2, 6, 512), (8, 1, 6, 640))),
    # Of timm's author, made before the code of the paper was out.
    "rw": _v2(
        ((2, 24), (4, 48), (4, 64)),
        ((6, 2, 4, 128), (9, 1, 6, 160), (15, 2, 6, 272)),
        first=FusedInvertedResidual,
    ),
}

# The factors of width and depth (Tan and Le 2019, section 3.3, as in their code), and of the images of `tf_` networks
# the size in pixels and the crop.
_SCALES = (
    (1.0, 1.0, 224, 0.875),
    (1.0, 1.1, 240, 0.882),
    (1.1, 1.2, 260, 0.89),
    (1.2, 1.4, 300, 0.904),
    (1.4, 1.8, 380, 0.922),
    (1.6, 2.2, 456, 0.934),
    (1.8, 2.6, 528, 0.942),
    (2.0, 3.1, 600, 0.949),
    (2.2, 3.6, 672, 0.954),
)


def _network(stages, stem_width=32, num_features=1280, *, width=1.0, depth=1.0, least=0.9):
    """The fields of a network with `width` times the channels and `depth` times the blocks of `stages`."""
    return dict(
        stages=scaled(stages, width=width, depth=depth, least=least),
        stem_width=rounded(stem_width * width, least=least),
        num_features=rounded(num_features * width, least=least),
        style=Style(silu),
    )


def _lite(*, width, depth):
    """As above, but stem, features and the number of blocks of the first and the last stage stay."""
    stages = scaled(_LITE0, width=width, depth=depth, keep_ends=True)
    return dict(stages=stages, stem_width=32, num_features=1280, style=Style(relu6))


_BOTH = {
    **{f"efficientnet_b{i}": _network(_B0, width=w, depth=d) for i, (w, d, *_) in enumerate(_SCALES)},
    **{f"efficientnet_lite{i}": _lite(width=w, depth=d) for i, (w, d, *_) in enumerate(_SCALES[:5])},
    "efficientnetv2_s": _network(_V2["s"], 24),
    "efficientnetv2_m": _network(_V2["m"], 24),
    "efficientnetv2_l": _network(_V2["l"]),
    "efficientnetv2_xl": _network(_V2["xl"]),
}
_PYTORCH = {
    "efficientnetv2_rw_t": _network(_V2["s"], 24, width=0.8, depth=0.9),
    "efficientnetv2_rw_s": _network(_V2["rw"], 24, 1792),
    "efficientnetv2_rw_m": dict(
        _network(_V2["rw"], 24, 1792, width=1.2),
        stages=scaled(_V2["rw"][:4], width=1.2, depth=1.2) + scaled(_V2["rw"][4:], width=1.2, depth=1.6),
    ),
}
_TENSORFLOW = {
    f"efficientnetv2_b{i}": _network(_V2["b"], width=w, depth=d, least=0.0) for i, (w, d, *_) in enumerate(_SCALES[:4])
}

NAMES: dict[str, Callable[..., Classifier]] = {
    **{name: partial(efficientnet, **fields) for name, fields in {**_BOTH, **_PYTORCH}.items()},
    **{
        f"tf_{name}": partial(efficientnet, **{**fields, "style": tensorflow(fields["style"])})
        for name, fields in {**_BOTH, **_TENSORFLOW}.items()
    },
}

_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_B_INPUTS = [Input(size, crop) for _, _, size, crop in _SCALES]
INPUTS = {
    **{f"efficientnet_b{i}": _B_INPUTS[i] for i in (6, 7, 8)},
    **{f"tf_efficientnet_b{i}": _B_INPUTS[i] for i in range(1, 8)},
    **{f"efficientnet_lite{i}": _B_INPUTS[i] for i in range(1, 5)},
    **{f"tf_efficientnet_lite{i}": _B_INPUTS[i]._replace(**_HALF) for i in range(3)},
    "tf_efficientnet_lite3": Input(300, 0.904, "bilinear", **_HALF),
    "tf_efficientnet_lite4": Input(380, 0.92, "bilinear", **_HALF),
    "efficientnet_b1": Input(240, 0.9, **_HALF),
    "efficientnet_b2": Input(256),
    "efficientnet_b3": Input(288),
    "efficientnet_b4": Input(320),
    "efficientnet_b5": Input(448, 1.0, fit="stretch"),
    "tf_efficientnet_b8": Input(672, 0.954, **_HALF),
    **{f"efficientnetv2_{kind}": Input(288, 1.0) for kind in ("s", "rw_s")},
    **{f"efficientnetv2_{kind}": Input(320, 1.0) for kind in ("m", "rw_m")},
    **{f"efficientnetv2_{kind}": Input(384, 1.0) for kind in ("l", "xl")},
    "efficientnetv2_rw_t": Input(crop=1.0),
    "tf_efficientnetv2_s": Input(300, 1.0, **_HALF),
    **{f"tf_efficientnetv2_{kind}": Input(384, 1.0, fit="stretch", **_HALF) for kind in ("m", "l", "xl")},
    "tf_efficientnetv2_b0": Input(192),
    "tf_efficientnetv2_b1": Input(192, 0.882),
    "tf_efficientnetv2_b2": Input(208, 0.89),
    "tf_efficientnetv2_b3": Input(240, 0.9, fit="stretch", **_HALF),
}
