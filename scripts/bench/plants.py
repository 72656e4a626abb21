"""Faults that no config can express: models that start or end wrongly, data that do not match.

`MODELS` are entries for `models.MODELS`, each a model of that table with one change. `SOURCES` write an .npz of the
digits with one change. The library knows nothing of either.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from linseed import models
from linseed.trainer.data import sources


def _same(value):
    return value


class Planted(NamedTuple):
    """A Linen module whose initial parameters and logits each pass through a function."""

    module: Any
    params: Callable = _same
    logits: Callable = _same

    def init(self, *args, **kwargs):
        state, params = flax.core.pop(self.module.init(*args, **kwargs), "params")
        return {"params": self.params(params), **state}

    def apply(self, *args, **kwargs):
        result = self.module.apply(*args, **kwargs)
        if "mutable" in kwargs:
            return self.logits(result[0]), result[1]
        return self.logits(result)


def _planted(name: str, **changes: Callable) -> Callable:
    """The builder `name` of `models.MODELS`, with the same arguments."""
    build = models.MODELS[name]

    @functools.wraps(build)
    def wrapped(**kwargs):
        return Planted(build(**kwargs), **changes)

    return wrapped


def _kernels(change: Callable) -> Callable:
    return lambda params: jax.tree.map(lambda leaf: change(leaf) if leaf.ndim > 1 else leaf, params)


def _biases(value: float) -> Callable:
    """Sets the biases of all hidden layers; with a low `value` and normalised pixels no unit is ever above zero."""

    def change(params):
        hidden = {name: layer for name, layer in params.items() if name != "head"}
        changed = jax.tree.map(lambda leaf: jnp.full_like(leaf, value) if leaf.ndim == 1 else leaf, hidden)
        return {**params, **changed}

    return change


MODELS = {
    "dead_relus": _planted("mlp", params=_biases(-10.0)),
    "init_30": _planted("mlp", params=_kernels(lambda kernel: 30.0 * kernel)),
    "softmax_output": _planted("cnn", logits=jax.nn.softmax),
    "zero_weights": _planted("mlp", params=_kernels(jnp.zeros_like)),
}


def _shuffle_labels(arrays):
    """Gives each image of train, and of validation carved from it, another image's label."""
    arrays["train_labels"] = np.random.default_rng(0).permutation(arrays["train_labels"])


def _invert_validation(arrays):
    """Makes a tenth of train the validation split, with black digits on white instead of white on black."""
    part = np.random.default_rng(0).permutation(len(arrays["train_labels"])) < len(arrays["train_labels"]) // 10
    images, labels = arrays["train_images"], arrays["train_labels"]
    arrays |= {"val_images": 255 - images[part], "val_labels": labels[part]}
    arrays |= {"train_images": images[~part], "train_labels": labels[~part]}


SOURCES = {"inverted_validation": _invert_validation, "shuffled_labels": _shuffle_labels}


def source(name: str, folder: Path, *, test_fraction: float, split_seed: int) -> dict[str, str]:
    """Writes the digits, changed by `SOURCES[name]`, to `folder`; returns their config.data.source.

    test_fraction, split_seed: of `sources.digits`.
    """
    digits = sources.digits(test_fraction=test_fraction, split_seed=split_seed)
    test = digits.open_test()
    arrays = {"train_images": digits.train.images, "train_labels": digits.train.labels}
    arrays |= {"test_images": test.images, "test_labels": test.labels}
    SOURCES[name](arrays)
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return {"name": "npz", "path": str(path)}
