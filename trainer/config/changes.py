"""Changes to a config by dotted key, as flags and trials make them."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from linseed import ranges
from linseed.trainer.config.canonical import flatten
from linseed.trainer.config.fields import FIELDS
from linseed.trainer.config.sections import TABLES, in_steps, parameters


def changed(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of `config` with the dotted keys of `changes` set; a mapping replaces a whole section.

    Another name in a section (`optimizer.name`) takes the old entry's parameters away, so that the new entry's defaults
    apply. A duration replaces the same one in another unit. Nothing is checked: `resolve` does that.
    """
    copy = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
    # Names first: the other changes are meant for the new entries.
    for key, value in sorted(changes.items(), key=lambda item: not item[0].endswith(".name")):
        section, _, name = key.rpartition(".")
        owner = _owner(copy, section)
        if name == "name" and section in TABLES and owner.get("name") != value:
            for parameter in _own_parameters(section, owner):
                del owner[parameter]
        for other in [other for other in owner if in_steps(f"{section}.{other}") == in_steps(key)]:
            del owner[other]
        owner[name] = ml_collections.ConfigDict(value) if isinstance(value, Mapping) else value
    return copy


def read(config: ml_collections.ConfigDict, texts: Mapping[str, str]) -> dict[str, Any]:
    """The changes that the flags `texts` make to `config`: each value in the type of its key."""
    flat = dict(flatten(config))
    annotations = dict(FIELDS)
    for section, table in TABLES.items():
        name = texts.get(f"{section}.name", flat.get(f"{section}.name"))
        annotations[f"{section}.name"] = str
        if name in table:
            annotations |= {key: parameter.annotation for key, parameter in parameters(section, name).items()}
    return {key: ranges.read(text, annotations.get(in_steps(key), object)) for key, text in texts.items()}


def _owner(config, section):
    owner = config
    for part in filter(None, section.split(".")):
        if not isinstance(owner.get(part), ml_collections.ConfigDict):
            owner[part] = ml_collections.ConfigDict()
        owner = owner[part]
    return owner


def _own_parameters(section, owner):
    """The keys of the section `owner` that are parameters of the entry that it names."""
    if owner.get("name") not in TABLES[section]:
        return []
    own = parameters(section, owner["name"])
    return [key for key in owner if in_steps(f"{section}.{key}") in own]
