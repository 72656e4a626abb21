"""Regularisers: terms of the loss that are functions of the parameters alone.

A regulariser is `params -> float32 scalar`, added to the mean loss. It acts on what weight decay acts on: biases
and the scales of normalisation layers are spared, and a rule's decay multiplier counts (`trainer.optim.rules`).

`l2` of strength s is, under plain SGD, coupled weight decay of 2 s: the gradient of s W^2 is 2 s W.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from linseed.ranges import NonNegative
from linseed.trainer.optim import rules as rules_lib


def _none():
    return None


def _l2(*, strength: NonNegative = 1e-4):
    # strength * sum of W^2
    return lambda leaf: strength * jnp.sum(leaf**2)


def _l1(*, strength: NonNegative = 1e-5):
    # strength * sum of |W|
    return lambda leaf: strength * jnp.sum(jnp.abs(leaf))


def _elastic_net(*, strength: NonNegative = 1e-5, beta: NonNegative = 1.0):
    # strength * sum of beta W^2 + |W|: Zou and Hastie 2005, in the lecture's form.
    return lambda leaf: strength * jnp.sum(beta * leaf**2 + jnp.abs(leaf))


REGULARIZERS = {"elastic_net": _elastic_net, "l1": _l1, "l2": _l2, "none": _none}


def make_regularizer(name: str, *, rules: Sequence[str], **kwargs) -> Callable[..., jax.Array]:
    """`params -> float32 scalar`, the sum of `REGULARIZERS[name]` over the parameters that decay.

    rules: those of the optimiser. kwargs: the entry's. When called it raises ConfigError for rules that do not fit the
    parameters.
    """
    term = REGULARIZERS[name](**kwargs)
    if term is None:
        return lambda params: jnp.float32(0)

    def regularizer(params):
        multipliers = jax.tree.leaves(rules_lib.decay_multipliers(rules, params))
        leaves = jax.tree.leaves(params)
        terms = [m * term(leaf) for m, leaf in zip(multipliers, leaves, strict=True) if m]
        return sum(terms, start=jnp.float32(0))

    return regularizer
