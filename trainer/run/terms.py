"""What all processes of a run must have in common before the first step: versions, code, config, devices, flags."""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from linseed.trainer.config.canonical import flatten
from linseed.trainer.run.result import versions

_PACKAGES = ("linseed", "linseed.models", "linseed.trainer")  # the code that a result depends on


def terms(config: ml_collections.ConfigDict, *, judge: Sequence[str], on_config_change: str) -> dict[str, Any]:
    """The terms of this process, as JSON by name."""
    return {
        **{f"version of {name}": version for name, version in versions().items()},
        **dict(_sources(config.plugins)),
        **{f"config.{key}": value for key, value in flatten(config)},
        "number of devices": jax.local_device_count(),
        "--judge": list(judge),
        "--on_config_change": on_config_change,
    }


def _sources(plugins: Sequence[str]) -> Iterator[tuple[str, str]]:
    """("source trainer/train.py", the beginning of its sha256) of each file of the package and the plugins."""
    for package in _PACKAGES:
        folder = Path(importlib.import_module(package).__path__[0])
        for file in sorted(folder.rglob("*.py")):
            yield f"source {folder.name}/{file.relative_to(folder).as_posix()}", _hash(file)
    for plugin in plugins:
        file = Path(sys.modules[plugin].__file__ or "")
        for part in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
            yield f"source of the plugin {plugin}, {part.name}", _hash(part)


def _hash(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
