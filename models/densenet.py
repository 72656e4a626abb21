"""Densely connected networks, DenseNet-BC (Huang et al. 2017, "Densely connected convolutional networks", section 3).

`densenet121`, `densenet169` and `densenet201` are those of table 1, and `densenet161` the same with a growth rate of
48. `densenet264d` and `densenetblur121d` are timm's, with a stem of three 3x3 convolutions (He et al. 2019, "Bag of
tricks for image classification", ResNet-C); the second blurs before it pools (Zhang 2019, "Making convolutional
networks shift-invariant again").
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier, Compute, Input, as_logits, batch_norm, conv
from linseed.ranges import BelowOne, OneOf

# That of PyTorch's linear layers: variance 1 / (3 fan_in).
_head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _norm_relu(x, *, train, compute, name):
    return nn.relu(batch_norm(train=train, compute=compute, name=name)(x))


def max_pool(x: jax.Array) -> jax.Array:
    """Max over 3x3 windows, stride 2: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def blurred_max_pool(x: jax.Array) -> jax.Array:
    """Max over 3x3 windows, stride 1, then every second pixel of the map blurred by (1, 2, 1) / 4 along both axes.

    [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C], H and W at least 2. The blur mirrors the map at its border.
    """
    x = nn.max_pool(x, (3, 3), (1, 1), padding=((1, 1), (1, 1)))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    x = (x[:, :-2:2] + 2 * x[:, 1:-1:2] + x[:, 2::2]) / 4
    return (x[:, :, :-2:2] + 2 * x[:, :, 1:-1:2] + x[:, :, 2::2]) / 4


class Stem(nn.Module, kw_only=True):
    """Convolutions, each normalised and rectified, and pooling: [B, H, W, C] -> [B, H', W', widths[-1]].

    sizes, widths: of each convolution. stride: of the first.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    stride: int
    pool: Callable[[jax.Array], jax.Array]
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, (size, width) in enumerate(zip(self.sizes, self.widths, strict=True), start=1):
            x = conv(width, size, self.stride if i == 1 else 1, compute=self.compute, name=f"conv{i}")(x)
            x = _norm_relu(x, train=train, compute=self.compute, name=f"norm{i}")
        return self.pool(x)


def _single(size, stride, pool):
    return lambda growth: partial(Stem, sizes=(size,), widths=(2 * growth,), stride=stride, pool=pool)


def _deep(pool):
    return lambda growth: partial(Stem, sizes=(3, 3, 3), widths=(growth, growth, 2 * growth), stride=2, pool=pool)


# Called with the growth rate. "cifar" keeps the size of the image (section 3), the others divide it by 4.
STEMS = {
    "cifar": _single(3, 1, lambda x: x),
    "deep": _deep(max_pool),
    "deep_blur": _deep(blurred_max_pool),
    "imagenet": _single(7, 2, max_pool),
}


class DenseLayer(nn.Module, kw_only=True):
    """Appends `growth_rate` features to x: [B, H, W, C] -> [B, H, W, C + growth_rate].

    A 1x1 convolution gives 4 * growth_rate features, and a 3x3 convolution of these the new ones. dropout: of these.
    """

    growth_rate: int
    dropout: float
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm_relu = partial(_norm_relu, train=train, compute=self.compute)
        y = conv(4 * self.growth_rate, 1, 1, compute=self.compute, name="conv1")(norm_relu(x, name="norm1"))
        y = conv(self.growth_rate, 3, 1, compute=self.compute, name="conv2")(norm_relu(y, name="norm2"))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module, kw_only=True):
    """A 1x1 convolution and the mean of 2x2 windows: [B, H, W, C] -> [B, H // 2, W // 2, C // 2]."""

    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = _norm_relu(x, train=train, compute=self.compute, name="norm")
        y = conv(x.shape[-1] // 2, 1, 1, compute=self.compute, name="conv")(y)
        return nn.avg_pool(y, (2, 2), (2, 2))


class DenseNet(Classifier, kw_only=True):
    """A stem, stages of dense layers, a transition before each but the first, normalisation, ReLU, global mean, dense.

    The paper calls a stage a dense block; `block` makes one of its layers. growth_rate: features that a layer adds.
    layer_dropout: of these features (section 4.2; the paper has it after the 1x1 convolutions as well). dropout: before
    the head.
    """

    block: Callable[..., nn.Module]
    stage_sizes: tuple[int, ...]
    growth_rate: int
    stem: Annotated[str, OneOf(STEMS)] = "imagenet"
    layer_dropout: BelowOne = 0.0
    dropout: BelowOne = 0.0

    torch_names = (
        (r"^stem/(\D+)(\d)", lambda match: f"features/{match[1]}{int(match[2]) - 1}"),
        (r"^stage(\d+)_block(\d+)", r"features/denseblock\1/denselayer\2"),
        (r"^stage(\d+)_transition", lambda match: f"features/transition{int(match[1]) - 1}"),
        (r"^norm", "features/norm5"),
        (r"^head", "classifier"),
    )

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = STEMS[self.stem](self.growth_rate)(compute=self.compute, name="stem")(images, train=train)
        if min(x.shape[1:3]) < 2 ** (len(self.stage_sizes) - 1):
            size = f"{images.shape[1]}x{images.shape[2]}"
            raise ValueError(f"images of {size} are too small: set stem='cifar' or use larger images")
        for i, size in enumerate(self.stage_sizes, start=1):
            if i > 1:
                x = Transition(compute=self.compute, name=f"stage{i}_transition")(x, train=train)
            for j in range(1, size + 1):
                options = dict(growth_rate=self.growth_rate, dropout=self.layer_dropout, compute=self.compute)
                x = self.block(name=f"stage{i}_block{j}", **options)(x, train=train)
        x = jnp.mean(_norm_relu(x, train=train, compute=self.compute, name="norm"), axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        head = nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=_head_init, name="head")
        return as_logits(head(x))


_densenet = partial(DenseNet, block=DenseLayer)
NAMES: dict[str, Callable[..., Classifier]] = {
    "densenet121": partial(_densenet, stage_sizes=(6, 12, 24, 16), growth_rate=32),
    "densenet161": partial(_densenet, stage_sizes=(6, 12, 36, 24), growth_rate=48),
    "densenet169": partial(_densenet, stage_sizes=(6, 12, 32, 32), growth_rate=32),
    "densenet201": partial(_densenet, stage_sizes=(6, 12, 48, 32), growth_rate=32),
    "densenet264d": partial(_densenet, stage_sizes=(6, 12, 64, 48), growth_rate=48, stem="deep"),
    "densenetblur121d": partial(_densenet, stage_sizes=(6, 12, 24, 16), growth_rate=32, stem="deep_blur"),
}
INPUTS: dict[str, Input] = {}
