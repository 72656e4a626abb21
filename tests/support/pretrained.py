"""Weights as others publish them: random ones, under timm's names; and a small network with weights and photos."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from linseed.models import MODELS, names
from linseed.models.layers import Classifier, Compute, Input, batch_norm, conv
from linseed.ranges import BelowOne

COMPUTE = Compute(jnp.float32, axis_name=None, convolution=jax.lax.conv_general_dilated)
GIVEN = Input(24, 0.8, "bicubic", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "stretch")


class Tiny(Classifier, kw_only=True):
    """A convolution, normalisation, a head: compiled in a moment. Tests put it into `MODELS` as "tiny"."""

    torch_names = (("^stem", "conv1"), ("^norm", "bn1"), ("^head", "fc"))
    dropout: BelowOne = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = conv(8, 3, 2, compute=self.compute, name="stem")(images)
        x = nn.relu(batch_norm(train=train, compute=self.compute, name="norm")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.num_classes, name="head")(x)


def write_photos_and_weights(place):
    """`photos` with 48 images of three classes, each of a colour, and `tiny.safetensors` of a trained "tiny"."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ants", "bees", "wasps")):
        folder = place / "photos" / name
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 120, (40, 48, 3), np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / f"{i}.png")
    tensors = {key: np.ascontiguousarray(values) for key, values in tensors_of("tiny", classes=1000).items()}
    (place / "tiny.safetensors").write_bytes(safetensors.numpy.save(tensors))


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
