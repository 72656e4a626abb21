"""What the families share: their base class, the tables of activations, initialisers and normalisations, and layers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.pooling import maximum

# `jax.lax.conv_general_dilated`, or a function of the same signature and the same values.
Convolution = Callable[..., jax.Array]


class Compute(NamedTuple):
    """How a network computes. The parameters, their names and their initial values do not depend on it."""

    dtype: jnp.dtype  # what is computed in, float32 or bfloat16; parameters, batch statistics and logits are float32
    axis_name: str | None  # the mapped axis over which BatchNorm averages its statistics in training; None: one device
    convolution: Convolution  # what convolves
    running_variance: str = "biased"  # of BatchNorm, a key of RUNNING_VARIANCES
    frozen_statistics: bool = False  # whether BatchNorm uses its running averages in training too, and keeps them


class Classifier(nn.Module, kw_only=True):
    """A network, called as `classifier(images, train=...)`: [B, H, W, C] -> logits [B, num_classes], both float32.

    The images are normalised. The fields of a subclass are its parameters in a config, each with its range and its
    default. A name is a key of the table in its range; the config checks it. No field can be called `init`, which is a
    method of nn.Module.
    """

    num_classes: int
    compute: Compute

    # How the modules are called in timm and torchvision, see `names`, and elsewhere where weights are published. The
    # last layer is the module `head`.
    torch_names = ()
    other_names = ()
    resized = {}  # leaves whose shape follows the size of the images: name -> (values, shape) -> values of that shape


class Input(NamedTuple):
    """How the images were made that weights were trained on. mean, std: of RGB on the 0..1 scale.

    `fit` "crop" scales an image so that its short side is `size / crop`, and cuts out the middle square of `size`;
    "stretch" scales both its sides to that length first; "pad" scales its long side, and fills up the other.
    """

    size: int = 224  # pixels
    crop: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: str = "crop"


def as_logits(x: jax.Array) -> jax.Array:
    """The output of the last layer in float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Activation(NamedTuple):
    """A nonlinearity that may need more features than it gives, or parameters of its own.

    build: called in a compact method with the name its parameters go under, if it has any; gives the function
    float [..., pieces * F] -> [..., F], of the same dtype. pieces: features of the layer before for each one given on.
    init: what initialiser "auto" stands for, a key of INITIALIZERS.
    """

    build: Callable[[str], Callable[[jax.Array], jax.Array]]
    pieces: int
    init: str


def maxout(x: jax.Array) -> jax.Array:
    """max(w1 x + b1, w2 x + b2) of a layer that gives both: [..., 2 F] -> [..., F] (Goodfellow et al. 2013).

    The first half of the features are the one piece, the second half the other.
    """
    return maximum(*jnp.split(x, 2, axis=-1))


@jax.custom_jvp
def _normal_cdf(x):
    return 0.5 * jax.lax.erfc(-x * jnp.asarray(0.5**0.5, x.dtype))


@_normal_cdf.defjvp
def _normal_density(primals, tangents):
    # JAX 0.12 cannot differentiate its own erfc under shard_map.
    (x,), (t,) = primals, tangents
    return _normal_cdf(x), t * jnp.exp(-0.5 * x * x) * jnp.asarray((2 * jnp.pi) ** -0.5, x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the distribution function of the unit normal (Hendrycks and Gimpel 2016): any shape and dtype."""
    return x * _normal_cdf(x)


def _prelu(name: str) -> nn.PReLU:
    # He et al. 2015, section 2.1, "channel-shared": one learned slope a layer, at first 0.25 where Flax has 0.01.
    return nn.PReLU(negative_slope_init=0.25, name=name)


def _plain(function: Callable[[jax.Array], jax.Array], /, *, init: str) -> Activation:
    """An activation of one feature, without parameters."""
    return Activation(lambda name: function, pieces=1, init=init)


# For the rectifiers "auto" is He's variance, 2 / fan_in. It is exact for relu, which hands on half of the second moment
# of a unit normal (leaky_relu 0.51, prelu 0.53, elu 0.64, gelu 0.43, silu 0.36). sigmoid and tanh, linear near zero,
# take Glorot's. The larger of two independent unit normals has second moment one, so that maxout takes 1 / fan_in.
ACTIVATIONS = {
    "elu": _plain(nn.elu, init="kaiming_normal"),  # x, below zero exp(x) - 1. Clevert et al. 2016
    "gelu": _plain(gelu, init="kaiming_normal"),  # x Phi(x). Hendrycks and Gimpel 2016
    "leaky_relu": _plain(partial(nn.leaky_relu, negative_slope=0.1), init="kaiming_normal"),  # max(0.1 x, x)
    "maxout": Activation(lambda name: maxout, pieces=2, init="lecun_normal"),
    "prelu": Activation(_prelu, pieces=1, init="kaiming_normal"),  # x, below zero a x with a learned
    "relu": _plain(nn.relu, init="kaiming_normal"),  # max(0, x)
    "sigmoid": _plain(nn.sigmoid, init="xavier_uniform"),  # 1 / (1 + exp(-x))
    "silu": _plain(nn.silu, init="kaiming_normal"),  # x sigmoid(x). Hendrycks and Gimpel 2016
    "tanh": _plain(nn.tanh, init="xavier_uniform"),
}


def _dirac(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    # The first I of O outputs hand on an input each, unchanged; the others are PyTorch's default, uniform with variance
    # 1 / (3 fan_in). Zagoruyko and Komodakis 2017, "DiracNets"; in part, as in Jordan's record of 2024.
    rest = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    *window, inputs, outputs = shape
    kept = min(inputs, outputs)
    identity = jnp.zeros((*window, inputs, kept), dtype)
    identity = identity.at[*(size // 2 for size in window)].set(jnp.eye(inputs, kept, dtype=dtype))
    return jnp.concatenate([identity, rest[..., kept:]], axis=-1)


# He et al. 2015, "Delving deep into rectifiers", eq. 10: variance 2 / fan_in, which ReLU layers hand on unchanged.
kaiming = nn.initializers.kaiming_normal()

# Means are zero. fan_in and fan_out count the window of a convolution: height * width * channels. The normal ones are
# JAX's: cut off at two standard deviations and widened by as much as restores the variance.
INITIALIZERS = {
    "dirac": _dirac,
    "kaiming_normal": kaiming,
    "kaiming_normal_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),  # eq. 14
    "kaiming_uniform": nn.initializers.kaiming_uniform(),
    "kaiming_uniform_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "uniform"),
    "lecun_normal": nn.initializers.lecun_normal(),  # variance 1 / fan_in. LeCun et al. 1998, "Efficient backprop"
    # Saxe et al. 2014: orthonormal columns, or rows where there are fewer of them; a window counts as fan_in rows.
    "orthogonal": nn.initializers.orthogonal(),
    # Variance one whatever the fan; for a last layer whose logits are scaled down.
    "unit_uniform": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5),
    # Glorot and Bengio 2010, eq. 16: variance 2 / (fan_in + fan_out).
    "xavier_normal": nn.initializers.xavier_normal(),
    "xavier_uniform": nn.initializers.xavier_uniform(),
}


def initializer(name: str, *, activation: str) -> nn.initializers.Initializer:
    """The initialiser `name` of INITIALIZERS; "auto" is the one that fits `activation`, a name in ACTIVATIONS."""
    return INITIALIZERS[ACTIVATIONS[activation].init if name == "auto" else name]


class _PyTorchBatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` whose running variance averages the unbiased variances of the batches.

    A batch is still normalised by its biased variance.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average or self.is_initializing():
            return super().__call__(x)
        old = self.get_variable("batch_stats", "var")
        y = super().__call__(x)
        new = self.get_variable("batch_stats", "var")
        count = x.size // x.shape[-1] * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
        self.put_variable("batch_stats", "var", new + (new - self.momentum * old) / (count - 1))
        return y


# What a running variance averages: the variance of a batch, or n / (n - 1) times that, n the values of a channel.
RUNNING_VARIANCES = {"biased": nn.BatchNorm, "unbiased": _PyTorchBatchNorm}


def batch_norm(
    *,
    train: bool,
    compute: Compute,
    name: str,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    use_scale: bool = True,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """Batch normalisation over all but the last axis (Ioffe and Szegedy 2015).

    In training the statistics are those of the batch, averaged over `compute.axis_name` where there is one, and the
    running averages become `momentum * old + (1 - momentum) * new`. Otherwise, and in training too with
    `compute.frozen_statistics`, the running averages are used. PyTorch's momentum is one minus this one, and its
    running variance is that of `compute.running_variance="unbiased"`. Parameters, statistics and their reductions are
    float32 whatever `compute.dtype` is.
    """
    return RUNNING_VARIANCES[compute.running_variance](
        use_running_average=not train or compute.frozen_statistics,
        axis_name=compute.axis_name,
        momentum=momentum,
        epsilon=epsilon,
        dtype=compute.dtype,
        use_scale=use_scale,
        scale_init=scale_init,
        name=name,
    )


def _batch(x, *, train, compute, name):
    return batch_norm(train=train, compute=compute, name=name)(x)


def _layer(x, *, train, compute, name):
    # Ba et al. 2016: over all features of an example, which in a feature map are those of every place. Scale and
    # bias are one per channel, as Wu and He 2018 have it, section 3.1.
    return nn.GroupNorm(num_groups=1, epsilon=1e-5, dtype=compute.dtype, name=name)(x)


def _group(x, *, train, compute, name):
    # Wu and He 2018, with 16 channels a group: narrow layers are one group, and none has a group of one channel.
    width = x.shape[-1]
    size = min(16, width)
    if width % size:
        raise ValueError(f"group normalisation takes widths up to 16 and multiples of 16, not {width}")
    return nn.GroupNorm(num_groups=None, group_size=size, epsilon=1e-5, dtype=compute.dtype, name=name)(x)


def _none(x, *, train, compute, name):
    return x


# Called in a compact method: float [B, ..., C] -> the same shape in `compute.dtype`, parameters under `name`. To mean
# zero and variance one over the stated axes, then a learned scale and bias for each channel.
NORMALIZATIONS = {"batch": _batch, "group": _group, "layer": _layer, "none": _none}


class Block(nn.Module):
    """Weights, normalisation, activation: float [B, ..., C] -> [B, ..., width].

    weights: makes the layer from its number of features, e.g. nn.Dense, with its own arguments and its name fixed. It
    has a bias where there is no normalisation to bring one. activation, kernel_init and normalization are keys of
    ACTIVATIONS, INITIALIZERS (or "auto") and NORMALIZATIONS.
    """

    weights: Callable[..., nn.Module]
    width: int
    activation: str
    kernel_init: str
    normalization: str
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        layer = self.weights(
            self.width * activation.pieces,
            use_bias=self.normalization == "none",
            dtype=self.compute.dtype,
            kernel_init=initializer(self.kernel_init, activation=self.activation),
        )
        x = NORMALIZATIONS[self.normalization](layer(x), train=train, compute=self.compute, name="norm")
        return activation.build("activation")(x)


def conv(features: int, size: int, stride: int, *, compute: Compute, name: str, groups: int = 1) -> nn.Conv:
    """A convolution without bias, He's variance: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

    Padded alike on both sides at any stride; "SAME" would shift strided maps by half a pixel. groups: as many equal
    parts of the channels are convolved apart.
    """
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        feature_group_count=groups,
        dtype=compute.dtype,
        kernel_init=kaiming,
        conv_general_dilated=compute.convolution,
        name=name,
    )
