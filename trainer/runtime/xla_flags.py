"""XLA's switches for CPUs that have to be set before JAX starts. This module must not import JAX.

XLA hands some operations on CPU to the library YNNPACK ("YNN fusions"). jaxlib 0.10.2 turned that on for reductions,
matrix products and convolutions: its reductions then give wrong numbers or crash the process (jax issues 39103, 40412),
and its matrix products make a train step up to twice as slow, on all versions so far (docs/benchmarks.md).
"""

import importlib.metadata
import os
import re

YNN = "--xla_cpu_experimental_ynn_fusion_type"
# From which jaxlib on -> the kinds of YNN fusion that are right and fast in it; None: the switch is left alone, as in
# versions that nobody has tried: XLA ends a process that names a switch it does not know.
FUSIONS = {(0,): None, (0, 10, 2): "", (0, 11, 2): "LIBRARY_FUSION_TYPE_REDUCE", (0, 13): None}


def use(*, jaxlib: str | None = None):
    """Adds the switch to XLA_FLAGS, for this process and those that it starts, unless the user set it.

    jaxlib: a version; by default the installed one. Has no effect on a JAX that has compiled something already.
    """
    version = tuple(map(int, re.findall(r"\d+", jaxlib or importlib.metadata.version("jaxlib"))[:3]))
    flags = os.environ.get("XLA_FLAGS", "")
    fusions = FUSIONS[max(first for first in FUSIONS if first <= version)]
    if fusions is not None and YNN not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {YNN}={fusions}".strip()
