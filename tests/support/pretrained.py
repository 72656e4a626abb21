"""Weights as others publish them: random ones, under timm's names."""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from linseed.models import MODELS, names
from linseed.models.layers import Compute

COMPUTE = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)


def tensors_of(name, *, classes, size=32):
    """The tensors of a network, float32, by name; variances are positive."""
    model = MODELS[name](num_classes=classes, compute=COMPUTE)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    found, rng = {}, np.random.default_rng(0)
    for path, like in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        values = rng.normal(0, 0.05, like.shape).astype(np.float32)
        values = 1 + np.abs(values) if path.endswith(("var", "scale")) else values
        found[names.torch_name(path.partition("/")[2], model.torch_names)] = names.to_torch(path, values)
    return found
