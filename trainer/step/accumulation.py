"""Gradient accumulation: a batch is processed in parts, with the result of the whole batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from linseed.trainer.errors import ConfigError


def accumulate(fn: Callable, carry: Any, batch: Any, *, parts: int) -> tuple[Any, Any]:
    """The sum of `fn` over `parts` equal pieces of `batch`, one after the other, in the memory of one piece.

    fn: (carry, piece, index) -> (carry, summands); index is the piece's number, int32. batch: leaves [B, ...], B
    divisible by `parts`, cut in order. Returns the last carry (BatchNorm statistics pass from piece to piece) and the
    sum of the summands; floating leaves are summed and returned in float32.

    The result equals that of the whole batch if the summands are sums over examples: gradients of the *summed* loss
    over the real examples of the batch, not of a piece's mean. Only BatchNorm sees a smaller batch: it normalises each
    piece by itself. One call is one optimiser step for schedules, checkpoints and logs. Raises ConfigError if `parts`
    does not divide B.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % parts:
        raise ConfigError(
            f"config.accumulation_parts={parts} does not divide the {size} examples a device; use a divisor"
        )
    if parts == 1:
        return fn(carry, batch, jnp.int32(0))
    pieces = jax.tree.map(lambda leaf: leaf.reshape(parts, size // parts, *leaf.shape[1:]), batch)
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    _, shapes = jax.eval_shape(fn, carry, first, jnp.int32(0))

    def add(carry_and_total, piece_and_index):
        carry, total = carry_and_total
        carry, summands = fn(carry, *piece_and_index)
        return (carry, jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, summands)), None

    start = (carry, jax.tree.map(_zero, shapes))
    (carry, total), _ = jax.lax.scan(add, start, (pieces, jnp.arange(parts, dtype=jnp.int32)))
    return carry, total


def _zero(shape):
    """A zero to sum onto, float32 for floats. `zeros_like` keeps how the summand varies over devices."""
    return jnp.zeros_like(shape, dtype=jnp.float32 if jnp.issubdtype(shape.dtype, jnp.floating) else shape.dtype)
