"""Linseed: image classification in JAX and Flax whose results are sound by construction.

    import linseed

    config = linseed.load_config("digits", {"horizon.epochs": 5, "optimizer.name": "nadam"})
    result = linseed.train(config, "runs/notebook")
    print(result["test"]["accuracy"])
    print(linseed.load("runs/notebook/model.linseed").predict("photos").labels)

`train` goes on where a folder's run was stopped. All errors that a user can mend are `LinseedError`s of one line.
Importing this package imports no JAX: that comes with the first use of one of its names.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from linseed.api import evaluate, load, load_config, load_plugin, train, validate
    from linseed.trainer.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DistributedError,
        LinseedError,
        NonFiniteError,
        WorkdirError,
    )

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistributedError",
    "LinseedError",
    "NonFiniteError",
    "WorkdirError",
    "evaluate",
    "load",
    "load_config",
    "load_plugin",
    "train",
    "validate",
]
__version__ = importlib.metadata.version("linseed")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'linseed' has no attribute '{name}'")
    module = "linseed.trainer.errors" if name.endswith("Error") else "linseed.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
