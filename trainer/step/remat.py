"""Rematerialisation: the backward pass computes activations again instead of keeping them: less memory, more time.

The gradient is the same within rounding. Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from linseed.trainer.errors import ConfigError

# Primitives whose results are kept: products, calls of libraries outside XLA, and sums, which are small.
_DEAR = {"conv_general_dilated", "dot_general", "ffi_call", "psum", "psum_invariant", "reduce_sum"}


class Remat(NamedTuple):
    """model: the model as built -> the model that is trained. forward: the forward pass, arrays to arrays -> same."""

    model: Callable[[nn.Module], nn.Module]
    forward: Callable[[Callable], Callable]


def _same(it):
    return it


def _is_dear(primitive, *_, **__):
    return primitive.name in _DEAR


def _blocks(model):
    """`model` that keeps only the inputs of its blocks. Its parameters, their names and their values stay.

    Raises ConfigError for a model without a field `block`, a callable that builds one.
    """
    if not hasattr(model, "block"):
        raise ConfigError("config.remat='blocks' needs a residual network; set it to 'none' or 'elementwise'")

    def build(**kwargs):
        block = model.block(**kwargs)
        return lambda x, *, train: nn.remat(lambda block, x: block(x, train=train))(block, x)

    return model.clone(block=build)


REMAT: dict[str, Remat] = {
    "blocks": Remat(_blocks, _same),  # residual networks: keeps the blocks' inputs
    # Recomputes normalisation, activations ...
    "elementwise": Remat(_same, functools.partial(jax.checkpoint, policy=_is_dear)),
    "none": Remat(_same, _same),
}
