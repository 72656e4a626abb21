"""A config as text: canonical JSON, its hash, and the differences between two."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config whose leaves are `values`, by dotted key."""
    tree: dict = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        owner = tree
        for section in sections:
            owner = owner.setdefault(section, {})
        owner[name] = value
    return ml_collections.ConfigDict(tree)


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as canonical JSON: sorted keys, tuples as lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def sha256(config: ml_collections.ConfigDict) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """One `key: old -> new` for each key that differs."""
    old, new = (dict(flatten(json.loads(to_json(config)))) for config in (old, new))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in changed]
