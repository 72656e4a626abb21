"""Whether oneDNN's convolutions work on this machine: a child process, which may crash, tests it once.

The verdict holds for a version of jaxlib, a processor and a version of `onednn.py`. It is one small JSON file in
`$XDG_CACHE_HOME/linseed`, by default `~/.cache/linseed`. If that is not writable, each process tests again.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from linseed.trainer import files
from linseed.trainer.errors import WorkdirError

TIMEOUT_SECONDS = 60.0  # it takes two to four
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS, signal.SIGFPE)
VERDICTS = (0, 1, *(-number for number in CRASHES))  # exit statuses of the child; others mean Ctrl-C or the OOM killer
CHILD = "from linseed.trainer.runtime import onednn as c; raise SystemExit(not c.largest_error() < c.TOLERANCE)"


@functools.cache
def proven() -> bool:
    """True if the child process did not crash and found XLA's values. The first call takes seconds, once."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not sys.executable:
        return False
    subject = _subject()
    cache = _cache(subject)
    try:
        return json.loads(cache.read_text(encoding="utf-8"))["proven"] is True
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not tested yet, or a damaged file
    verdict = _try(CHILD)
    if verdict is not None:
        _remember(cache, {**subject, "proven": verdict})
    return verdict is True


def _subject() -> dict[str, str]:
    """What the verdict depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    # A model name can be as short as "AMD EPYC"; the flags tell the generations apart.
    about = [next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags")]
    return {
        "jaxlib": importlib.metadata.version("jaxlib"),
        "processor": about[0].partition(":")[2].strip(),
        "flags_sha256": hashlib.sha256(about[1].encode()).hexdigest(),
        "code_sha256": hashlib.sha256((Path(__file__).parent / "onednn.py").read_bytes()).hexdigest(),
    }


def _cache(subject: dict[str, str]) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()
    return Path(folder) / "linseed" / f"convolution-{digest[:16]}.json"


def _try(code: str) -> bool | None:
    """Whether a Python that runs `code` exits with status 0; None if it took too long, did not start or was killed."""
    try:
        with tempfile.TemporaryDirectory(prefix="linseed-proof-") as programs:
            child = subprocess.run(
                [sys.executable, "-P", "-c", code],
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": "--xla_backend_optimization_level=0",
                    # With the cache on: the test includes that such programs stay out of it.
                    "JAX_ENABLE_COMPILATION_CACHE": "true",
                    "JAX_COMPILATION_CACHE_DIR": programs,
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "true",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_SECONDS,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None  # perhaps the machine is busy: not remembered
    return child.returncode == 0 if child.returncode in VERDICTS else None


def _remember(cache: Path, verdict: dict):
    with contextlib.suppress(OSError, WorkdirError):  # the next process tries again
        files.make(cache.parent)
        files.write(cache, json.dumps(verdict, indent=2))
