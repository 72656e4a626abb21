"""Checksums to verify that data read are the data written: inside JSON objects, and of arrays."""

import json
import zlib
from typing import Any

import jax
import numpy as np


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """`record`, a JSON object, with its checksum under the key `crc32`."""
    return {**record, "crc32": _crc32(record)}


def unseal(record: Any) -> dict[str, Any] | None:
    """The record that `seal` was given; None if `record` is not exactly the result of `seal`."""
    if not isinstance(record, dict):
        return None
    rest = {key: value for key, value in record.items() if key != "crc32"}
    return rest if record.get("crc32") == _crc32(rest) else None


def loads(text: str) -> dict[str, Any] | None:
    """`unseal` of JSON text; also None if it is not JSON."""
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
    """(path, dtype, shape) of every array of `tree`: these must agree before values can."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {(jax.tree_util.keystr(path), str(leaf.dtype), leaf.shape) for path, leaf in leaves}
