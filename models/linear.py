"""The linear classifier: f(x) = W x + b on flattened images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from linseed.models.layers import Classifier


class Linear(Classifier, kw_only=True):
    """One dense layer on all pixels. With the softmax loss it is logistic regression, with the hinge losses an SVM.

    Starts at W = 0, b = 0: the losses are convex in them, so that no symmetry has to be broken, and the loss at the
    start is exactly that of a guess.
    """

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        head = nn.Dense(self.num_classes, dtype=self.compute.dtype, kernel_init=nn.initializers.zeros, name="head")
        return head(x).astype(jnp.float32)
