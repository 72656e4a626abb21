"""The table of data sources."""

from typing import Any

from linseed.trainer.data.dataset import Source
from linseed.trainer.data.sources import folder, folder_stream, npz, tfds, tfds_stream
from linseed.trainer.data.sources.toy import digits, synthetic

SOURCES = {
    "digits": digits,
    "folder": folder.folder,
    "folder_stream": folder_stream.folder_stream,
    "npz": npz.npz,
    "synthetic": synthetic,
    "tfds": tfds.tfds,
    "tfds_stream": tfds_stream.tfds_stream,
}


def load(name: str, **settings: Any) -> Source:
    """Calls the source `name` of `SOURCES` with `settings`, the rest of `config.data.source`; raises as it does."""
    return SOURCES[name](**settings)
