"""Faults that no config can express: models that start or end wrongly, data that do not match.

`MODELS` are entries for `models.MODELS`, each a model of that table with one change. `SOURCES` write an .npz of another
source with one change. The library knows nothing of either.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from linseed import models
from linseed.trainer.data import sources
from linseed.trainer.data.splits import carve_validation

NETWORKS = ("cnn", "mlp")


def _same(value):
    return value


class Planted(NamedTuple):
    """A Linen module whose images, initial parameters and logits each pass through a function.

    trained_images: a function that the images pass through in training only.
    """

    module: Any
    images: Callable = _same
    params: Callable = _same
    logits: Callable = _same
    trained_images: Callable = _same

    def init(self, *args, **kwargs):
        state, params = flax.core.pop(self.module.init(*args, **kwargs), "params")
        return {"params": self.params(params), **state}

    def apply(self, variables, images, **kwargs):
        images = self.trained_images(images) if kwargs["train"] else images
        result = self.module.apply(variables, self.images(images), **kwargs)
        if "mutable" in kwargs:
            return self.logits(result[0]), result[1]
        return self.logits(result)


def _planted(name: str, **changes: Any) -> Callable:
    """The builder `name` of `models.MODELS`, with the same arguments."""
    build = models.MODELS[name]

    @functools.wraps(build)
    def wrapped(**kwargs):
        return Planted(build(**kwargs), **changes)

    return wrapped


def _kernels(change: Callable) -> Callable:
    return lambda params: jax.tree.map(lambda leaf: change(leaf) if leaf.ndim > 1 else leaf, params)


def _low_biases(params):
    """Sets the biases of all hidden layers so low that, for normalised pixels, no unit is ever above zero."""

    def change(path, leaf):
        hidden = path[0].key != "head" and path[-1].key == "bias"
        return jnp.full_like(leaf, -10.0) if hidden else leaf

    return jax.tree_util.tree_map_with_path(change, params)


CHANGES = {
    "dead_relus": dict(params=_low_biases),
    "divided_by_255": dict(images=lambda images: images / 255),
    "init_30": dict(params=_kernels(lambda kernel: 30.0 * kernel)),
    "normalised_again": dict(images=lambda images: (images - 0.4) / 0.3),
    "sigmoid_output": dict(logits=jax.nn.sigmoid),
    "softmax_output": dict(logits=jax.nn.softmax),
    "transposed_in_training": dict(trained_images=lambda images: jnp.swapaxes(images, 1, 2)),
    "zero_weights": dict(params=_kernels(jnp.zeros_like)),
}
MODELS = {
    f"{change}_{network}": _planted(network, **changes) for change, changes in CHANGES.items() for network in NETWORKS
}


def _rng():
    return np.random.default_rng(0)


def _shuffle_labels(arrays):
    """Gives each image of train, and of validation, another image's label."""
    for name in ("train_labels", "val_labels"):
        arrays[name] = _rng().permutation(arrays[name])


def _wrong_labels(arrays):
    """Gives 30 % of train another class, drawn at random."""
    labels, rng = arrays["train_labels"], _rng()
    classes, wrong = labels.max() + 1, rng.random(len(labels)) < 0.3
    arrays["train_labels"] = np.where(wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels)


def _next_labels(arrays):
    """Calls 30 % of the train images of each class by the name of the next class."""
    labels = arrays["train_labels"]
    wrong = _rng().random(len(labels)) < 0.3
    arrays["train_labels"] = np.where(wrong, (labels + 1) % (labels.max() + 1), labels)


def _rename_validation(arrays):
    """Numbers the classes of validation from another one on."""
    arrays["val_labels"] = (arrays["val_labels"] + 1) % (arrays["train_labels"].max() + 1)


def _invert_validation(arrays):
    """Makes validation dark on light instead of light on dark."""
    arrays["val_images"] = 255 - arrays["val_images"]


def _darken_validation(arrays):
    """Makes validation four times as dark."""
    arrays["val_images"] = arrays["val_images"] // 4


def _copy_validation(arrays):
    """Makes validation a copy of train."""
    arrays |= {"val_images": arrays["train_images"], "val_labels": arrays["train_labels"]}


def _share_validation(arrays):
    """Replaces a third of validation by train images."""
    many = len(arrays["val_labels"]) // 3
    for kind in ("images", "labels"):
        arrays[f"val_{kind}"] = np.concatenate([arrays[f"train_{kind}"][:many], arrays[f"val_{kind}"][many:]])


def _sort(arrays):
    """Splits images sorted by class: validation is the end of the last class."""
    images, labels = (np.concatenate([arrays[f"train_{kind}"], arrays[f"val_{kind}"]]) for kind in ("images", "labels"))
    order = np.argsort(labels, kind="stable")
    first = len(labels) - int(0.9 * np.sum(labels == labels.max()))
    for split, part in (("train", order[:first]), ("val", order[first:])):
        arrays |= {f"{split}_images": images[part], f"{split}_labels": labels[part]}


def _blank_images(arrays):
    """Makes 40 % of the train images black."""
    blank = _rng().random(len(arrays["train_labels"])) < 0.4
    arrays["train_images"] = np.where(blank[:, None, None, None], np.uint8(0), arrays["train_images"])


SOURCES = {
    "blank_images": _blank_images,
    "copied_validation": _copy_validation,
    "dark_validation": _darken_validation,
    "inverted_validation": _invert_validation,
    "next_labels": _next_labels,
    "renamed_validation": _rename_validation,
    "shared_validation": _share_validation,
    "shuffled_labels": _shuffle_labels,
    "sorted_split": _sort,
    "wrong_labels": _wrong_labels,
}


def source(name: str, folder: Path, *, of: Mapping[str, Any]) -> dict[str, str]:
    """Writes the source `of` (a config.data.source), changed by `SOURCES[name]`, to `folder`.

    A fifth of train becomes validation. Returns the config.data.source of what was written.
    """
    original = sources.load(**of)
    train, val = carve_validation(original, fraction=0.2, seed=0)
    arrays = {}
    for split, part in (("train", train), ("val", val), ("test", original.open_test())):
        arrays |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
    SOURCES[name](arrays)
    path = folder / f"{name}_{of['name']}.npz"
    np.savez(path, **arrays)
    return {"name": "npz", "path": str(path)}
