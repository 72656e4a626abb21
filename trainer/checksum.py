"""Checksums, to tell that what is read is what was written: of JSON objects, which carry theirs, and of arrays."""

import json
import zlib
from typing import Any

import jax
import numpy as np


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """`record`, a JSON object, with its checksum under the key `crc32`."""
    return {**record, "crc32": _crc32(record)}


def unseal(record: Any) -> dict[str, Any] | None:
    """What `seal` was given; None where `record` is not, whole, what it made."""
    if not isinstance(record, dict):
        return None
    rest = {key: value for key, value in record.items() if key != "crc32"}
    return rest if record.get("crc32") == _crc32(rest) else None


def loads(text: str) -> dict[str, Any] | None:
    """`unseal` of JSON text; None where it is no JSON, too."""
    try:
        return unseal(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _crc32(record):
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def checksums(tree) -> dict[str, list]:
    """{path: [dtype, shape, crc32]} of every array of `tree`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(leaf.shape), zlib.crc32(np.ascontiguousarray(leaf))]
        for path, leaf in leaves
    }


def shapes(tree) -> set[tuple]:
    """(path, dtype, shape) of every array of `tree`: what must agree before the values can."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {(jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape) for path, leaf in leaves}
