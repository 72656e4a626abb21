"""The state before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.models.cnn import Cnn
from linseed.models.layers import Compute
from linseed.trainer.optim import chain
from linseed.trainer.step import state


def create(*, seed=0, ema=False):
    compute = Compute(jnp.float32, axis_name="batch", convolution=jax.lax.conv_general_dilated)
    model = Cnn(widths=(4,), dropout=0.1, num_classes=3, compute=compute)
    tx = chain.make_tx("adamw", schedule=lambda _: 0.1, clip_norm=0.0, b1=0.9, b2=0.9, eps=1e-8, weight_decay=0.0)
    return state.create(state.make_init(model, tx, image_shape=(8, 8, 1)), seed=seed, ema=ema)


def test_state_is_host_arrays_and_nothing_else():
    assert {type(leaf) for leaf in jax.tree.leaves(create(ema=True))} == {np.ndarray}


def test_weights_depend_on_the_seed_alone():
    a, b, c = create(seed=1), create(seed=1, ema=True), create(seed=2)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert (a.params["head"]["kernel"] != c.params["head"]["kernel"]).any()
    assert (a.rng != c.rng).any()


@pytest.mark.parametrize("ema", [False, True])
def test_validation_judges_the_average_where_there_is_one(ema):
    first = create(ema=ema)
    judged = state.evaluated_weights(first)
    assert judged is first.ema if ema else judged["params"] is first.params
    assert set(judged) == {"params", "model_state"}


def test_the_average_is_a_copy_not_an_alias():
    first = create(ema=True)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(first.ema["params"]), strict=True):
        assert not np.shares_memory(a, b)
