"""The switches that XLA is started with: right numbers on this jaxlib, and the user's own are left alone."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseed.trainer.runtime import xla_flags

# Of a public report (jax-ml/jax#40412): jaxlib 0.10.2 as it comes crashes here.
RANK_7 = """
from linseed.trainer.runtime import xla_flags
xla_flags.use()
import jax, jax.numpy as jnp
a = jnp.ones((3, 1, 2, 2, 8, 8, 8))
print(float(jnp.sum(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, a))))
"""


@pytest.mark.parametrize(
    ("jaxlib", "given", "wanted"),
    [
        ("0.10.1", "", ""),
        ("0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0.1", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"),
        ("0.11.0", "", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.13.0", "", ""),
        ("0.12.0", "--xla_cpu_experimental_ynn_fusion_type=x", "--xla_cpu_experimental_ynn_fusion_type=x"),
    ],
)
def test_the_switch_goes_by_the_version_and_the_user_goes_first(monkeypatch, jaxlib, given, wanted):
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.use(jaxlib=jaxlib)
    assert os.environ["XLA_FLAGS"] == wanted


def test_a_batched_product_and_its_reduction_are_right():
    """jax-ml/jax#39103: jaxlib 0.10.2 as it comes is off by 0.2 %."""
    count = 32_769
    x = np.zeros((count, 3), np.float32)
    x[:, 0] = np.arange(count)
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
    np.testing.assert_allclose(found, np.arange(count, dtype=np.float64) ** 2, rtol=1e-6)


def test_a_reduction_of_rank_7_does_not_crash():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", RANK_7], env=environment, capture_output=True, text=True)
    assert done.stdout == "6144.0\n", (done.returncode, done.stderr)
