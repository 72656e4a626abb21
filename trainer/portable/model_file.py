"""A model file: a trained network with all that predicting needs, in one file of safetensors.

The tensors have timm's names. The metadata hold one JSON object, the card: the version of the format, the network, the
classes, how images are read, the temperature, the measured accuracy and where all of it comes from. Its first key is
the sha256 of the whole file, computed with zeros in its place. Nothing in the file is run.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from linseed.trainer import files
from linseed.trainer.data.decode import shown
from linseed.trainer.errors import DataError
from linseed.trainer.weights import find

FORMAT = 1
ENDING = ".linseed"

_ZEROS = 64 * "0"
_CURE = "copy or export it again: linseed export --workdir=RUN --out=model.linseed"


def write(path: Path, *, card: dict[str, Any], tensors: dict[str, np.ndarray]):
    """Writes the file, with its format and its checksum in the card. The same arguments give the same bytes."""
    text = json.dumps({"sha256": _ZEROS, "format": FORMAT, **card})
    # One key alone: safetensors writes several in any order.
    content = safetensors.numpy.save(tensors, metadata={find.CARD_KEY: text})
    files.write(path, content.replace(_mark(_ZEROS), _mark(hashlib.sha256(content).hexdigest()), 1))


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The card and the tensors by name.

    Raises DataError, one line, for a file that is missing, cut, changed by a byte, of a newer format or no model file.
    """
    content = find.content(path)
    tensors = find.tensors(content, path)
    card = _card(content)
    if card is None:
        raise DataError(f"{path} is no model file; write one: linseed export --workdir=RUN --out=model.linseed")
    if card["format"] > FORMAT:
        made_by = card.get("versions")
        version = f" {made_by.get('linseed')}" if isinstance(made_by, dict) else ""
        raise DataError(
            f"{path} is of format {card['format']}, made by a newer Linseed{shown(version)[:20]}, and this one reads "
            f"formats up to {FORMAT}; update it: pip install --upgrade linseed"
        )
    digest = str(card["sha256"])
    if hashlib.sha256(content.replace(_mark(digest), _mark(_ZEROS), 1)).hexdigest() != digest:
        raise DataError(f"{path} is damaged: its checksum does not match; {_CURE}")
    return card, tensors


def _mark(digest: str) -> bytes:
    """The first key of the card as it stands in the file: JSON within JSON."""
    return json.dumps(f'"sha256": "{digest}"').encode()[1:-1]


def _card(content: bytes) -> dict[str, Any] | None:
    """The card in a whole file of safetensors, None in a file of others."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = json.loads(header["__metadata__"][find.CARD_KEY])
        is_card = isinstance(card["format"], int) and isinstance(card["sha256"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return card if is_card else None
