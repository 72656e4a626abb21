"""Checksums to verify that data read are the data written: inside JSON objects, and of arrays."""

import json
import zlib
from typing import Any

import numpy as np

_KEY = "crc32"


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """`record`, a JSON object, with its checksum under the key `crc32`."""
    return {**record, _KEY: _crc32(record)}


def unseal(record: Any) -> dict[str, Any] | None:
    """The record that `seal` was given; None if `record` is not exactly the result of `seal`."""
    if not isinstance(record, dict):
        return None
    rest = {key: value for key, value in record.items() if key != _KEY}
    return rest if record.get(_KEY) == _crc32(rest) else None


def unseal_or_old(record: Any) -> dict[str, Any] | None:
    """`unseal`; an object without a checksum, which an earlier version wrote, is taken as it is."""
    return record if isinstance(record, dict) and _KEY not in record else unseal(record)


def loads(text: str | bytes) -> dict[str, Any] | None:
    """`unseal` of JSON text; also None if it is not JSON."""
    return unseal(_parsed(text))


def loads_or_old(text: str | bytes) -> dict[str, Any] | None:
    """`unseal_or_old` of JSON text; also None if it is not JSON."""
    return unseal_or_old(_parsed(text))


def _parsed(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _crc32(record):
    as_read = json.loads(json.dumps(record))  # whose keys are strings, which sort in another order than numbers
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def checksums(tree) -> dict[str, list]:
    """{path: [dtype, shape, crc32]} of every array of `tree`."""
    return {
        path: [str(leaf.dtype), list(leaf.shape), zlib.crc32(np.ascontiguousarray(leaf))]
        for path, leaf in _leaves(tree)
    }


def shapes(tree) -> set[tuple]:
    """(path, dtype, shape) of every array of `tree`: these must agree before values can."""
    return {(path, str(leaf.dtype), leaf.shape) for path, leaf in _leaves(tree)}


def _leaves(tree):
    from jax import tree_util  # here: what only reads sealed JSON, such as the sources, starts without JAX

    return [(tree_util.keystr(path), leaf) for path, leaf in tree_util.tree_leaves_with_path(tree)]
