"""The part of `--config=FILE:VARIANT` after the colon: words that a page knows, `quick`, `root=DIR`, with commas.

A page lists its words in one table, VARIANTS: each word with the keys that it changes, or with a function of the word's
value that returns them. The last thing that a page's `get_config` does is `variants.apply(config, variant, VARIANTS)`.
"""

import os

import ml_collections


def apply(config, variant, words):
    """`config` with the changes of the words in `variant`, in the order of the table `words`.

    Raises ValueError for a word that is not in the table, a value that is missing or too much, and two words that set
    one key; `quick` and words with a value may replace what another word set.
    """
    given = {}
    for part in filter(None, variant.split(",")):
        word, equals, value = part.partition("=")
        if word not in words:
            raise ValueError(
                f"unknown config variant '{word}'; known: {', '.join(sorted(words))}{_in_flags(words, variant)}"
            )
        if callable(words[word]) != bool(value):
            raise ValueError(f"config variant '{part}': write {word}{'=VALUE' if callable(words[word]) else ''}")
        given[word] = value
    owner = {}
    for word in (word for word in words if word in given):
        changes = words[word](given[word]) if callable(words[word]) else words[word]
        for key, value in changes.items():
            if owner.setdefault(key, (word, value))[1] != value and word != "quick" and not given[word]:
                raise ValueError(f"config variants '{owner[key][0]}' and '{word}' both set {key}; keep one of them")
            _set(config, key, value)
    return config


def _in_flags(words, variant):
    """What to write for the last word's value if that is meant to hold the comma behind which a word is unknown."""
    word, equals, value = variant.partition("=")
    word = word.rpartition(",")[2]
    if not equals or not callable(words.get(word)):
        return ""
    flags = []
    for key, setting in words[word](value).items():
        inner = setting if isinstance(setting, dict) else {"": setting}
        flags += [f"'--config.{key}{'.' * bool(name)}{name}={each}'" for name, each in inner.items()]
    return f"; if the comma belongs to {word}={value}, give flags in place of the variant: {' '.join(flags)}"


def _set(config, key, value):
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    config[name] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


# The words of pages that start from the weights of others.
PRETRAINED = {"root": lambda root: {"data.source.root": root}, "weights": lambda name: {"pretrained": name}}


def folder(root):
    """The word `root=DIR` of the CIFAR-10 pages: class folders of 32x32 images in place of TFDS."""
    return {"data.source": dict(name="folder", root=root, image_size=32)}


def count_photos(root: str) -> int:
    """The number of files in the folders of `root/train`, or of `root`; 0 where there is none."""
    root = os.path.expanduser(root)
    inside = os.path.join(root, "train")
    return sum(len(files) for _, _, files in os.walk(inside if os.path.isdir(inside) else root))
