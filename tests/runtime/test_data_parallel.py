"""Placement: what is cut, what is copied, and what is refused."""

import jax
import numpy as np
import pytest

from linseed.trainer.errors import ConfigError
from linseed.trainer.runtime.data_parallel import BACKENDS, DataParallel


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_each_device_sees_its_rows_in_order(backend):
    parallel = DataParallel(backend, devices=jax.devices())
    devices = parallel.num_devices

    def first_row_by_place(scale, batch):
        place = jax.lax.axis_index("batch")
        mine = jax.numpy.zeros(devices).at[place].set(batch["x"][0])
        return jax.lax.psum(scale * mine, "batch")

    x = np.arange(2.0 * devices, dtype=np.float32)
    compiled = parallel.compile(first_row_by_place, donate=False)
    found = compiled(parallel.replicate(np.float32(10)), parallel.shard({"x": x}))
    np.testing.assert_array_equal(found, 10 * x[::2])


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_donated_state_is_given_up(backend):
    parallel = DataParallel(backend, devices=jax.devices())
    compiled = parallel.compile(lambda s, b: s + jax.lax.psum(b.sum(), "batch"), donate=True)
    state = parallel.replicate(np.zeros(64, np.float32))
    compiled(state, parallel.shard(np.ones(4, np.float32)))
    assert state.is_deleted()


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_the_nearest_that_works():
    parallel = DataParallel("pmap", devices=jax.devices()[:4])
    parallel.check_divides(64, key="config.data.batch_size", parts=2)
    with pytest.raises(ConfigError, match=r"config.data.batch_size=50 does not divide over 4 devices; use 48 or 52"):
        parallel.check_divides(50, key="config.data.batch_size", parts=1)
    with pytest.raises(ConfigError, match="use 4$"):
        parallel.check_divides(3, key="config.eval.batch_size", parts=1)
    with pytest.raises(ConfigError, match="over 4 devices in 3 parts each; use 60 or 72"):
        parallel.check_divides(64, key="config.data.batch_size", parts=3)


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'pmap'"):
        DataParallel("pmp", devices=jax.devices())
