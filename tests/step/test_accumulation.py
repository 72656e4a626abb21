"""A batch in parts gives what the batch in one piece gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim.chain import applied_lr, make_tx
from linseed.trainer.optim.schedules import make_schedule
from linseed.trainer.runtime.data_parallel import AXIS, DataParallel
from linseed.trainer.step.accumulation import accumulate

RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(16, 5)).astype(np.float32),
    "label": RNG.integers(0, 3, 16),
    "mask": (np.arange(16) < 13).astype(np.float32),  # the padding falls into one part
}
PARAMS = {"kernel": RNG.normal(size=(5, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}


def summed_loss(params, piece):
    logits = piece["image"] @ params["kernel"] + params["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, piece["label"])
    return jnp.sum(losses * piece["mask"])


def make_step(tx, *, parts):
    """A train step in the house's manner: local sums, one mean over devices."""

    def step(state, batch):
        params, opt_state = state
        examples = jax.lax.psum(jnp.sum(batch["mask"]), AXIS)
        local = jax.lax.pcast(params, AXIS, to="varying")

        def summands(count, piece, index):
            loss, grads = jax.value_and_grad(summed_loss)(local, piece)
            return count + 1, {"loss": loss, "grads": grads, "index": index}

        count, sums = accumulate(summands, jnp.int32(0), batch, parts=parts)
        grads = jax.tree.map(lambda g: jax.lax.psum(g, AXIS) / examples, sums["grads"])
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = {"loss": jax.lax.psum(sums["loss"], AXIS) / examples, "count": count, "index": sums["index"]}
        return (optax.apply_updates(params, updates), opt_state), metrics

    return step


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_steps_in_parts_equal_steps_in_one_piece(backend):
    schedule = make_schedule("linear", lr=0.1, warmup_steps=1, total_steps=6)
    parallel = DataParallel(backend, devices=jax.devices()[:2])
    results = []
    for parts in (1, 4):
        tx = make_tx("adamw", schedule=schedule, clip_norm=0.5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
        step = parallel.compile(make_step(tx, parts=parts), donate=False)
        state = parallel.replicate((PARAMS, tx.init(PARAMS)))
        for t in range(4):
            state, metrics = step(state, parallel.shard(BATCH))
            # Schedules count optimiser steps, not parts.
            np.testing.assert_allclose(applied_lr(state[1]), schedule(t), rtol=1e-6)
        assert int(metrics["count"]) == parts and int(metrics["index"]) == sum(range(parts))
        results.append((jax.device_get(state[0]), float(metrics["loss"])))
    (whole, whole_loss), (parted, parted_loss) = results
    np.testing.assert_allclose(parted_loss, whole_loss, rtol=1e-5)
    for key in PARAMS:
        np.testing.assert_allclose(parted[key], whole[key], rtol=1e-4, atol=1e-6)
        assert np.abs(whole[key] - PARAMS[key]).max() > 0.05


def test_summands_of_low_precision_are_summed_in_float32():
    # In bfloat16, which has 8 bits, 256 + 1 is 256.
    batch = jnp.array([256.0, 1, 1, 1], jnp.bfloat16)
    _, total = accumulate(lambda carry, piece, index: (carry, piece.sum()), (), batch, parts=4)
    assert total.dtype == jnp.float32 and total == 259


def test_pieces_come_in_order_and_carry_on():
    def digits(carry, piece, index):
        return carry * 10 + piece[0], index

    carry, total = accumulate(digits, jnp.int32(0), jnp.arange(1, 7, dtype=jnp.int32), parts=3)
    assert carry == 135 and total == 3


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match="accumulation_parts=3 does not divide the 16 examples"):
        accumulate(lambda *_: None, (), BATCH, parts=3)
