"""Sets the world of the tests, before JAX is imported: four CPU devices, and programs that compile fast.

XLA compiles without its expensive passes, and what one test compiled the next finds in a cache that
lives as long as the session. Child processes inherit both.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="linseed-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
