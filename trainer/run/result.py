"""`result.json`: the results of a finished run."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
        "commit": commit(),
    }


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


def commit() -> str:
    """The commit that is checked out where this code lies in a clone of the repository, "" elsewhere.

    Files that were changed since are not told.
    """
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except OSError:
        return ""
