"""Image classifiers in Flax Linen, by name.

Every module is called as `module(images, train=...)`, images float32 [B, H, W, C], already normalised, and returns
logits float32 [B, num_classes]. Parameters and batch statistics are float32; `dtype` is what is computed in.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from linseed.models.alexnet import alexnet
from linseed.models.cnn import cnn
from linseed.models.layers import Convolution, lookup
from linseed.models.linear import linear
from linseed.models.mlp import mlp
from linseed.models.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
)
from linseed.models.speednet import speednet
from linseed.models.vgg import vgg11, vgg13, vgg16, vgg19
from linseed.models.wide_resnet import wide_resnet28_10

MODELS = {
    "alexnet": alexnet,
    "cnn": cnn,
    "linear": linear,
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34": resnet34,
    "resnet44": resnet44,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet101": resnet101,
    "resnet110": resnet110,
    "resnet152": resnet152,
    "speednet": speednet,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "wide_resnet28_10": wide_resnet28_10,
}


def build(
    name: str,
    *,
    num_classes: int,
    dtype: jnp.dtype,
    axis_name: str | None,
    convolution: Convolution,
    **kwargs: Any,
) -> nn.Module:
    """The classifier `name` of MODELS; `kwargs` are its own arguments, as in a config's `model` section.

    dtype: jnp.float32 or jnp.bfloat16, the compute dtype. axis_name: the mapped axis over which batch normalisation
    takes its statistics in training, or None for a single device. convolution: what convolves, e.g.
    `jax.lax.conv_general_dilated`; a family without convolutions leaves it aside, as it does axis_name. Raises
    ValueError for an unknown name and TypeError for a missing or misspelt argument.
    """
    builder = lookup("model", name, MODELS)
    return builder(num_classes=num_classes, dtype=dtype, axis_name=axis_name, convolution=convolution, **kwargs)
