"""The benchmark of memory over epochs: what it reads is what is there, and growth is told from noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from linseed.scripts.bench import memory
from linseed.trainer.errors import LinseedError


def test_what_is_allocated_is_seen_and_what_is_freed_is_gone():
    before = memory.memory()
    ballast = np.ones(64 * memory.MIB, np.uint8)
    on_device = jnp.ones(2**20, jnp.float32)
    during = memory.memory()
    del ballast
    after = memory.memory()
    for kind in ("host_mib", "rss_mib"):
        assert during[kind] - before[kind] > 60 and during[kind] - after[kind] > 60
    assert during["device_mib"] - before["device_mib"] == pytest.approx(4, abs=0.1) and on_device.nbytes == 2**22
    assert after["peak_rss_mib"] > during["rss_mib"] - 1 > after["rss_mib"]  # the kernel counts in batches


def test_growth_is_that_of_the_later_half_as_a_share_of_the_peak():
    assert memory.growth([50, 100, 100, 100, 100, 100]) == 0  # start-up is no growth
    assert memory.growth([1, 40, 70, 92, 94, 96, 98, 100]) == pytest.approx(0.02)
    assert memory.growth([100, 100, 100, 100, 100, 200, 100, 100]) == 0  # nor is one epoch that is out of line
    assert memory.later_over_earlier([50, 100, 100, 110]) == 1.1
    assert memory.later_over_earlier([100, 90, 80, 80]) == 0.8


def test_what_cannot_be_measured_is_one_line(monkeypatch):
    with pytest.raises(LinseedError, match="--epochs=3 is too few"):
        memory.measure(epochs=3, images=64)
    monkeypatch.setattr(memory, "_ROLLUP", "nothing")
    with pytest.raises(LinseedError, match="only Linux has"):
        memory.measure(epochs=8, images=64)
