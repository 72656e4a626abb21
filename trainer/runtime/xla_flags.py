"""XLA flags, set before JAX starts. This module must not import JAX.

On CPU, XLA hands some operations to the library YNNPACK ("YNN fusions"). jaxlib 0.10.2 turned that on for reductions,
matrix products and convolutions. Its reductions give wrong numbers or crash the process (jax-ml/jax#39103, #40412). On
all versions so far its matrix products make a train step up to twice as slow (docs/benchmarks.md).

On GPU, XLA adds in an order that differs from run to run, and times several algorithms to choose one, unless it is told
to be deterministic.
"""

import importlib.metadata
import os
import re
import sys

DETERMINISTIC = "--xla_gpu_deterministic_ops"
YNN = "--xla_cpu_experimental_ynn_fusion_type"
# First jaxlib version -> the kinds of YNN fusion that are right and fast from it on. None leaves the flag alone, as for
# untried versions: XLA ends the process on an unknown flag.
FUSIONS = {(0,): None, (0, 10, 2): "", (0, 11, 2): "LIBRARY_FUSION_TYPE_REDUCE", (0, 13): None}


def use(*, jaxlib: str | None = None):
    """Adds the flag to XLA_FLAGS, for this process and its children, unless the user set it.

    jaxlib: a version; by default the installed one. Has no effect once JAX has compiled something.
    """
    version = tuple(map(int, re.findall(r"\d+", jaxlib or importlib.metadata.version("jaxlib"))[:3]))
    flags = os.environ.get("XLA_FLAGS", "")
    fusions = FUSIONS[max(first for first in FUSIONS if first <= version)]
    if fusions is not None and YNN not in flags:
        _add(f"{YNN}={fusions}")


def use_deterministic_ops() -> bool:
    """Adds the flag that makes GPUs give the same bits each time; other devices ignore it.

    Returns whether it is in effect: not where the user turned it off in XLA_FLAGS, nor where JAX started without it.
    """
    found = re.findall(rf"{DETERMINISTIC}(?:=(\S*))?(?:\s|$)", os.environ.get("XLA_FLAGS", ""))
    if found:
        return found[-1].lower() in ("", "true", "1")
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        return False
    _add(f"{DETERMINISTIC}=true")
    return True


def _add(flag):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
