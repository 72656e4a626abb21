"""Sets the world of the tests, before JAX is imported: four CPU devices, and programs that compile fast.

XLA compiles without its expensive passes, and what one test compiled the next finds in a cache that
lives as long as the session. Child processes inherit both. Convolutions are XLA's: the cache cannot hold oneDNN's.
Files are written into memory where there is room: a run forces each of its files to the disk, and tests write many.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest

from linseed.trainer.runtime import xla_flags

MEMORY = "/dev/shm"
ROOM = 4 * 2**30  # bytes that all tests together write, and more

if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ["TMPDIR"] = MEMORY
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
    ]
)
xla_flags.use()
xla_flags.use_deterministic_ops()  # now, not by the first run: the flags are part of what the cache goes by
if "PYTEST_XDIST_WORKER" in os.environ:
    # A cache for each worker: JAX writes a program in place, and another worker could read the half of it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{os.environ['PYTEST_XDIST_WORKER']}"
else:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="linseed-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def _skip_closed_loops(unraisable):
    """A restore that fails leaves futures of Orbax's reader behind, on an event loop that is closed by then."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


# pytest has its own hook, see setup.cfg, until it ends; some of the futures live longer.
atexit.register(setattr, sys, "unraisablehook", _skip_closed_loops)


@pytest.fixture(autouse=True, scope="session")
def convolutions_of_xla():
    from linseed.trainer.runtime import onednn

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onednn, "usable", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="module")
def memory_of_one_file():
    """What a file compiled is dropped at its end: a worker that runs them all stays small."""
    yield
    import jax
    from support import runs

    runs.SHARED.__init__()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def cheap_runs(request):
    """Runs draw no maps, and those of a test that patches nothing share what other tests compiled."""
    from support import runs

    from linseed.trainer.report import examples

    with pytest.MonkeyPatch.context() as patched:
        if request.module.__name__ not in ("test_examples", "test_report"):
            patched.setattr(examples, "add_maps", lambda *_, **__: None)
        patched.setattr(runs, "sharing", "monkeypatch" not in request.fixturenames)
        yield


@pytest.fixture(scope="module")
def photos_and_weights(tmp_path_factory):
    """A folder with `photos` and `tiny.safetensors`, of the network "tiny", which is there as a plugin adds it."""
    from support.pretrained import GIVEN, Tiny, write_photos_and_weights

    from linseed.models import INPUTS, MODELS

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(MODELS, "tiny", Tiny)
        patched.setitem(INPUTS, "tiny", GIVEN)
        place = tmp_path_factory.mktemp("pretrained")
        write_photos_and_weights(place)
        yield place
