"""The switches that XLA is started with: right numbers on this jaxlib, and the user's own are left alone."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import xla_bridge
from support.runs import tiny

from linseed.trainer.experiment import Shared, build
from linseed.trainer.runtime import xla_flags

# Of a public report (jax-ml/jax#40412): jaxlib 0.10.2 as it comes crashes here.
RANK_7 = """
from linseed.trainer.runtime import xla_flags
xla_flags.use()
import jax, jax.numpy as jnp
a = jnp.ones((3, 1, 2, 2, 8, 8, 8))
print(float(jnp.sum(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, a))))
"""

LATE = """
import jax, linseed
from linseed.trainer import train
from linseed.trainer.runtime import xla_flags
linseed.load_config("digits")
print(xla_flags.use_deterministic_ops(), jax.jit(lambda x: x + 1)(1.0))
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


@pytest.mark.parametrize(
    ("given", "wanted", "in_effect"),
    [
        ("", "--xla_gpu_deterministic_ops=true", True),
        ("--a=1", "--a=1 --xla_gpu_deterministic_ops=true", True),
        ("--xla_gpu_deterministic_ops", "--xla_gpu_deterministic_ops", True),
        ("--xla_gpu_deterministic_ops=1 --a=1", "--xla_gpu_deterministic_ops=1 --a=1", True),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false", False),
    ],
)
def test_deterministic_operations_are_asked_for_before_jax_starts(monkeypatch, given, wanted, in_effect):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    assert xla_flags.use_deterministic_ops() is in_effect
    assert os.environ["XLA_FLAGS"] == wanted


def test_deterministic_operations_cannot_be_had_once_jax_has_started(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    assert not xla_flags.use_deterministic_ops()
    assert os.environ["XLA_FLAGS"] == ""


def test_a_run_on_gpus_that_started_without_the_flag_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(xla_flags, "use_deterministic_ops", lambda: False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    description = build(tiny(), tmp_path, shared=Shared()).description
    assert "JAX started without --xla_gpu_deterministic_ops: a resumed run will not be the same" in description


def test_jax_has_not_started_when_a_config_was_read_and_knows_the_flag():
    """XLA ends the process on a flag that it does not know; it reads them when JAX starts, not when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True, text=True)
    assert done.stdout == "True 2.0\n", (done.returncode, done.stderr)


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
