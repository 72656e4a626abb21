"""`result.json`: the results of a finished run."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from linseed.trainer.data.splits import count_openings
from linseed.trainer.errors import WorkdirError
from linseed.trainer.run import report
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.progress import Progress


def assemble(
    *,
    progress: Progress,
    best_step: int,
    val: dict,
    test: dict | None,
    test_openings: int,
    steps: int,
    total_steps: int,
) -> dict[str, Any]:
    """The results of a run, to which the caller adds the hashes. test: None while the split is sealed."""
    monitor = progress.monitor.replace("_", " ")
    stopped = f"early stopping: {progress.stale_evaluations} evaluations without a better val {monitor}"
    lost = progress.best_step if progress.best_step != best_step else None
    return {
        "best_step": best_step,
        "monitor": progress.monitor,  # the score on validation that chose it
        "lost_best_step": lost,  # a better checkpoint, which was damaged: `best_step` replaces it
        "steps": steps,
        "stop_reason": "horizon reached" if steps >= total_steps else stopped,
        "val": val,
        "test": test,
        "test_openings": test_openings,
        "seconds": progress.seconds,
        "images_per_second": progress.timed_images / progress.timed_seconds if progress.timed_seconds else None,
        "devices": [device.device_kind for device in jax.devices()],
        "versions": versions(),
    }


def recount(workdir: Path) -> dict[str, Any] | None:
    """The result of the run in `workdir`, None without one. It and the report show the openings that are recorded."""
    result, openings = workdir_lib.read_result(workdir), count_openings(workdir / workdir_lib.OPENINGS)
    if result and result["test_openings"] != openings:
        result["test_openings"] = openings
        (workdir / workdir_lib.REPORT).unlink(missing_ok=True)
        workdir_lib.write_whole(workdir / workdir_lib.RESULT, json.dumps(result, indent=2))
    if result and not (workdir / workdir_lib.REPORT).exists():
        report.write(workdir)
    return result


@contextlib.contextmanager
def recounted(workdir: Path) -> Iterator[None]:
    """Calls `recount` at the end, whatever happens: an opening counts though its evaluation fails."""
    try:
        yield
    finally:
        with contextlib.suppress(WorkdirError):  # a damaged result is no reason to lose what was evaluated
            recount(workdir)


def params_sha256(params) -> str:
    """sha256 over path, dtype, shape and bytes of every parameter (host arrays)."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of the software that a result depends on."""
    names = ("linseed", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
