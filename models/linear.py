"""The linear classifier: f(x) = W x + b on flattened images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Convolution


class Linear(nn.Module):
    """One dense layer on all pixels. With the softmax loss it is logistic regression, with the hinge losses an SVM.

    Starts at W = 0, b = 0: the losses are convex in them, so that no symmetry has to be broken, and the loss at the
    start is exactly that of a guess.
    """

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")
        return head(x).astype(jnp.float32)


def linear(*, num_classes: int, dtype: jnp.dtype, axis_name: str | None, convolution: Convolution) -> nn.Module:
    """Builds `Linear`, which has nothing to choose; the loss makes it a softmax or an SVM classifier."""
    return Linear(num_classes, dtype)
