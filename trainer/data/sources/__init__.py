"""Where images come from: the table of sources."""

import inspect
from typing import Any

from linseed.trainer.data.dataset import Source
from linseed.trainer.data.sources.folder import folder
from linseed.trainer.data.sources.folder_stream import folder_stream
from linseed.trainer.data.sources.npz import npz
from linseed.trainer.data.sources.tfds import tfds
from linseed.trainer.data.sources.tfds_stream import tfds_stream
from linseed.trainer.data.sources.toy import digits, synthetic
from linseed.trainer.errors import ConfigError, unknown_name

SOURCES = {
    "digits": digits,
    "folder": folder,
    "folder_stream": folder_stream,
    "npz": npz,
    "synthetic": synthetic,
    "tfds": tfds,
    "tfds_stream": tfds_stream,
}


def load(name: str, **settings: Any) -> Source:
    """Calls the source `name` of `SOURCES` with `settings`, the rest of `config.data.source`.

    Raises ConfigError for a name or a setting that is not known, or a setting that
    is not given, and DataError as the source does.
    """
    if name not in SOURCES:
        raise ConfigError(unknown_name("config.data.source.name", name, SOURCES))
    known = inspect.signature(SOURCES[name]).parameters
    for setting in settings:
        if setting not in known:
            raise ConfigError(unknown_name(f"setting of the {name} source", setting, known))
    for setting in known:
        if setting not in settings:
            raise ConfigError(f"the {name} source needs {setting}; set config.data.source.{setting}")
    return SOURCES[name](**settings)
