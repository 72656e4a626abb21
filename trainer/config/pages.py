"""The pages that configs are written on: those of configs/, by name, and files of the user's."""

import difflib
import importlib.util
import sys
import types
from pathlib import Path

import ml_collections

from linseed import configs
from linseed.trainer.errors import ConfigError


def read_page(page: str) -> ml_collections.ConfigDict:
    """The config of a page, `NAME` or `FILE.py`, perhaps with `:VARIANT`, as it states it.

    Raises ConfigError for what is not there and whatever the page raises.
    """
    name, _, variant = page.partition(":")
    module = _module(name)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{name} has no get_config(); see configs/base.py for what a page is")
    try:
        return module.get_config(*([variant] if variant else []))
    except Exception as error:
        raise ConfigError(str(error) if type(error) is ValueError else _failed(name, error)) from error


def _module(name: str) -> types.ModuleType:
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.exists():
            raise ConfigError(f"no config file at {name}; look into configs/, or check --config")
    else:
        folder = Path(configs.__path__[0])
        known = sorted(file.stem for file in folder.glob("*.py") if file.stem not in ("__init__", "variants"))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"no page '{name}'; {hint}known: {', '.join(known)}; a file of your own ends in .py")
        path = folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"linseed_page_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(_failed(name, error)) from error
    return module


def _failed(name, error):
    return f"the config file {name} fails with {type(error).__name__}: {error}; look into it, or check --config"
