"""The Vision Transformers of timm by their names there, and the images that their weights were trained on.

AugReg: Steiner et al. 2022, "How to train your ViT?". DeiT, DeiT III: Touvron et al. 2021, 2022. CLIP: Radford et al.
2021, and Cherti et al. 2023. SigLIP: Zhai et al. 2023. DINOv2: Oquab et al. 2024, with registers Darcet et al. 2024.
DINOv3: Simeoni et al. 2025. DINO's networks are those of AugReg.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from linseed.models.layers import Classifier, Input
from linseed.models.vit import VisionTransformer
from linseed.models.vit_blocks import Block, OwnScalesBlock
from linseed.ranges import Count


class Patch8(VisionTransformer, kw_only=True):
    """Smaller patches, unless a config says otherwise."""

    patch_size: Count = 8


class Patch14(VisionTransformer, kw_only=True):
    """Patches of 14 pixels, unless a config says otherwise."""

    patch_size: Count = 14


class Patch32(VisionTransformer, kw_only=True):
    """Larger patches, unless a config says otherwise."""

    patch_size: Count = 32


PATCHED = {8: Patch8, 14: Patch14, 16: VisionTransformer, 32: Patch32}

# Width, depth, heads, and the width of the MLP over the width. Zhai et al. 2022, table 2, has most.
SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4),
    "xsmall": (256, 10, 4, 4),
    "small": (384, 12, 6, 4),
    "small_plus": (384, 12, 6, 4),
    "medium": (512, 12, 8, 4),
    "betwixt": (640, 12, 10, 4),
    "base": (768, 12, 12, 4),
    "base_plus": (896, 12, 14, 4),
    "large": (1024, 24, 16, 4),
    "so400m": (1152, 27, 16, 4304 / 1152),  # Alabdulmohsin et al. 2023, "Getting ViT in shape"
    "huge": (1280, 32, 16, 4),
    "huge_plus": (1280, 32, 20, 4),
    "giant": (1408, 40, 16, 6144 / 1408),
    "giantopt": (1536, 40, 16, 4),
    "gigantic": (1664, 48, 16, 8192 / 1664),
    "7b": (4096, 40, 32, 2),
}

IMAGENET = Input()
HALVES = Input(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = Input(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


_STRETCHED = (
    "vit_medium_patch16_gap_384",
    "vit_base_patch16_clip_384",
    "vit_large_patch14_clip_336",
    "vit_huge_patch14_clip_336",
    "vit_gigantic_patch14_clip_378",
)


class Group(NamedTuple):
    """Networks that differ in size alone.

    form: of their names. images: what they were trained on, but for `size` and `crop`. fields: what the names fix.
    members: (size, patch) -> pixels -> crop.
    """

    form: str
    images: Input
    fields: Mapping[str, Any]
    members: Mapping[tuple[str, int], Mapping[int, float]]

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Classifier], Input]]:
        """Name, network and images of each member."""
        for (size, patch), crops in self.members.items():
            fields = dict(zip(("width", "depth", "heads", "mlp_ratio"), SIZES[size], strict=True), block=Block)
            network = partial(PATCHED[patch], **fields | self.fields)
            for pixels, crop in crops.items():
                name = self.form.format(size=size, patch=patch, pixels=pixels)
                fit = "stretch" if name in _STRETCHED else "crop"
                yield name, network, self.images._replace(size=pixels, crop=crop, fit=fit)


_PLAIN = dict()
_DEIT3 = dict(layer_scale=1e-6, positions="patches")
_CLIP = dict(input_norm=True, norm_epsilon=1e-5)
_QUICK = dict(_CLIP, activation="quick_gelu")
_MAP = dict(class_token=False, pool="attention")
_GAP = dict(class_token=False, pool="mean")
_TANH = dict(activation="gelu_tanh")
_REGISTERS = dict(_GAP, positions="patches", final_norm="pooled")
_DINOV2 = dict(layer_scale=1e-5)
_DINOV2_GIANT = dict(_DINOV2, width=1536, heads=24, mlp_ratio=8 / 3, mlp_gate="fused", activation="silu")
_DINOV3 = dict(
    block=OwnScalesBlock,
    layer_scale=1e-5,
    norm_epsilon=1e-5,
    qkv_bias="none",
    positions="rotary",
    registers=4,
    pool="mean",
)
_SWIGLU = dict(mlp_gate="apart", activation="silu")
_BIASED = dict(qkv_bias="query_value")

_AUGREG = {
    ("tiny", 16): {224: 0.9, 384: 1.0},
    ("small", 32): {224: 0.9, 384: 1.0},
    ("small", 16): {224: 0.9, 384: 1.0},
    ("base", 32): {224: 0.9, 384: 1.0},
    ("base", 16): {224: 0.9, 384: 1.0},
    ("base", 8): {224: 0.9},
    ("large", 32): {224: 0.9, 384: 1.0},
    ("large", 16): {224: 0.9, 384: 1.0},
    ("large", 14): {224: 0.9},
    ("huge", 14): {224: 0.9},
    ("giant", 14): {224: 0.9},
    ("gigantic", 14): {224: 0.9},
}
_CLIPS = {
    ("xsmall", 16): {224: 0.9},
    ("medium", 32): {224: 0.9},
    ("medium", 16): {224: 0.9},
    ("betwixt", 32): {224: 0.9},
    ("base", 32): {224: 0.9, 256: 1.0, 384: 1.0, 448: 1.0},
    ("base", 16): {224: 0.95, 384: 1.0},
    ("huge", 14): {224: 1.0, 336: 1.0, 378: 1.0},
    ("giant", 14): {224: 1.0},
    ("gigantic", 14): {224: 1.0, 378: 1.0},
}
_QUICKS = {
    ("base", 32): {224: 0.9},
    ("base", 16): {224: 1.0},
    ("large", 14): {224: 1.0, 336: 1.0},
    ("huge", 14): {224: 1.0, 378: 1.0},
    ("gigantic", 14): {224: 1.0},
}
_SIGLIPS = {
    ("base", 16): {224: 0.9, 256: 0.9, 384: 0.9, 512: 0.9},
    ("large", 16): {256: 0.9, 384: 0.9, 512: 0.9},
    ("so400m", 14): {224: 0.9, 378: 0.9, 384: 0.9},
}
_TANH_SIGLIPS = {
    ("base", 32): {256: 0.9},
    ("so400m", 16): {256: 0.9, 384: 0.9, 512: 0.9},
    ("giantopt", 16): {256: 0.9, 384: 0.9},
}
_GAP_SIGLIPS = _SIGLIPS | {("so400m", 14): {224: 0.9, 378: 0.9, 384: 1.0, 448: 1.0, 896: 1.0}}

GROUPS = [
    Group("vit_{size}_patch{patch}_{pixels}", HALVES, _PLAIN, _AUGREG),
    Group("vit_{size}_patch{patch}_{pixels}", IMAGENET, _PLAIN, {("small", 8): {224: 0.9}}),
    Group(
        "deit_{size}_patch{patch}_{pixels}",
        IMAGENET,
        _PLAIN,
        {("tiny", 16): {224: 0.9}, ("small", 16): {224: 0.9}, ("base", 16): {224: 0.9, 384: 1.0}},
    ),
    Group(
        "deit_{size}_distilled_patch{patch}_{pixels}",
        IMAGENET,
        dict(distillation_token=True),
        {("tiny", 16): {224: 0.9}, ("small", 16): {224: 0.9}, ("base", 16): {224: 0.9, 384: 1.0}},
    ),
    Group(
        "deit3_{size}_patch{patch}_{pixels}",
        IMAGENET,
        _DEIT3,
        {
            ("small", 16): {224: 0.9, 384: 1.0},
            ("medium", 16): {224: 0.9},
            ("base", 16): {224: 0.9, 384: 1.0},
            ("large", 16): {224: 0.9, 384: 1.0},
            ("huge", 14): {224: 0.9},
        },
    ),
    Group("vit_{size}_patch{patch}_clip_{pixels}", CLIP, _CLIP, _CLIPS),
    Group("vit_{size}_patch{patch}_clip_{pixels}", HALVES, _CLIP, {("large", 14): {224: 1.0, 336: 1.0}}),
    Group("vit_{size}_patch{patch}_clip_quickgelu_{pixels}", CLIP, _QUICK, _QUICKS),
    Group("vit_{size}_patch{patch}_siglip_{pixels}", HALVES, _MAP, _SIGLIPS),
    Group("vit_{size}_patch{patch}_siglip_{pixels}", HALVES, _MAP | _TANH, _TANH_SIGLIPS),
    Group("vit_{size}_patch{patch}_siglip_gap_{pixels}", HALVES, _GAP, _GAP_SIGLIPS),
    Group("vit_{size}_patch{patch}_siglip_gap_{pixels}", HALVES, _GAP | _TANH, _TANH_SIGLIPS),
    Group(
        "vit_{size}_patch{patch}_gap_{pixels}",
        HALVES,
        dict(_GAP, qkv_bias="none", layer_scale=1e-6),
        {("medium", 16): {240: 0.95, 256: 0.95, 384: 0.95}, ("betwixt", 16): {256: 0.95}},
    ),
    Group(
        "vit_{size}_patch{patch}_gap_{pixels}",
        IMAGENET,
        _GAP,
        {("huge", 14): {224: 0.9}, ("huge", 16): {448: 1.0}, ("giant", 16): {224: 0.9}},
    ),
    Group(
        "vit_{size}_patch{patch}_reg1_gap_{pixels}",
        HALVES,
        dict(_REGISTERS, registers=1, layer_scale=1e-5),
        {("medium", 16): {256: 0.95}, ("betwixt", 16): {256: 0.95}},
    ),
    Group(
        "vit_{size}_patch{patch}_reg4_gap_{pixels}",
        HALVES,
        dict(_REGISTERS, registers=4, layer_scale=1e-5),
        {("medium", 16): {256: 0.95}, ("betwixt", 16): {256: 0.95, 384: 1.0}},
    ),
    Group(
        "vit_{size}_patch{patch}_reg4_gap_{pixels}",
        HALVES,
        dict(_REGISTERS, registers=4),
        {("base", 16): {256: 0.9}},
    ),
    *(
        Group(form, IMAGENET, fields | more, {(size, 14): {518: 1.0} for size in sizes})
        for form, more in [
            ("vit_{size}_patch{patch}_dinov2", {}),
            ("vit_{size}_patch{patch}_reg4_dinov2", dict(registers=4, positions="patches")),
        ]
        for fields, sizes in [(_DINOV2, ("small", "base", "large")), (_DINOV2_GIANT, ("giant",))]
    ),
    *(
        Group(form, IMAGENET, _DINOV3 | fields | bias, {(size, 16): {256: 1.0} for size in sizes})
        for form, bias, fields, sizes in [
            ("vit_{size}_patch{patch}_dinov3", {}, {}, ("small", "base", "large")),
            ("vit_{size}_patch{patch}_dinov3", {}, _SWIGLU, ("small_plus", "huge_plus", "7b")),
            ("vit_{size}_patch{patch}_dinov3_qkvb", _BIASED, {}, ("tiny", "small", "base", "large")),
            ("vit_{size}_patch{patch}_dinov3_qkvb", _BIASED, _SWIGLU, ("small_plus", "huge_plus")),
        ]
    ),
]

NAMES: dict[str, Callable[..., Classifier]] = {name: network for group in GROUPS for name, network, _ in group}
INPUTS: dict[str, Input] = {name: images for group in GROUPS for name, _, images in group if images != Input()}
