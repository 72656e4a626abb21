"""The features of images: what a network hands to its last layer. Computed once, and kept on the disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from linseed.trainer import files
from linseed.trainer.data.lazy import LazyImages
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError
from linseed.trainer.step.train_step import to_unit

FOLDER = ".features"  # beside the workdir, for all runs that have their workdirs there
HEAD = "head"


class Features(NamedTuple):
    """values: float32 [N, F]. labels: int32 [N]. Bad images that are skipped are in neither."""

    values: np.ndarray
    labels: np.ndarray


def make_features(*, model, normalize: Callable) -> Callable:
    """`features(weights, images)`, uint8 [B, H, W, C] -> float32 [B, F], as in evaluation.

    weights: {"params", "model_state"}. Raises ConfigError for a network whose last layer is not one module called
    `head`, of vectors; a distilled one has `head_dist` beside it.
    """

    def features(weights, images):
        seen = []

        def note(call, args, kwargs, context):
            path = context.module.path
            if len(path) == 1 and path[0].startswith(HEAD) and context.method_name == "__call__":
                seen.append(args[0])
            return call(*args, **kwargs)

        variables = {"params": weights["params"], **weights["model_state"]}
        with nn.intercept_methods(note):
            model.apply(variables, normalize(to_unit(images)), train=False)
        if len(seen) != 1 or seen[0].ndim != 2:
            raise ConfigError("config.head_init 'probe' needs a network that ends in one layer called 'head'")
        return seen[0].astype(jnp.float32)

    return features


def of_split(split: Split, compute: Callable, *, batch_size: int, mark: str, folder: Path) -> tuple[Features, bool]:
    """The features of a split's images, and whether they were on the disk already.

    compute: uint8 [batch_size, H, W, C] -> [batch_size, F]. mark: a hash of all that they depend on, by which they are
    kept in `folder`.
    """
    path = folder / f"{mark}.safetensors"
    stored = _read(path)
    if stored is not None:
        return stored, True
    found = computed(split, compute, batch_size=batch_size)
    files.make(folder)
    files.write(path, safetensors.numpy.save(found._asdict()))
    return found, False


def _read(path: Path) -> Features | None:
    content = files.read(path)
    if content is None:
        return None
    try:
        return Features(**safetensors.numpy.load(content))
    except (safetensors.SafetensorError, TypeError):  # damaged: it is computed again
        return None


def computed(split: Split, compute: Callable, *, batch_size: int) -> Features:
    """What `compute`, as for `of_split`, gives for a split's images. The next batch is read while one is computed."""
    images, labels = split.images, split.labels
    places = [np.arange(start, min(start + batch_size, len(labels))) for start in range(0, len(labels), batch_size)]

    def read(place):
        if isinstance(images, LazyImages):
            return images.read_good(place)
        return images[place], np.ones(len(place), bool)

    values, kept = [], []
    with ThreadPoolExecutor(1) as pool:
        for place, (some, good) in zip(places, pool.map(read, places), strict=True):
            padded = np.concatenate([some, np.zeros((batch_size - len(some), *some.shape[1:]), some.dtype)])
            values.append(np.asarray(jax.device_get(compute(padded)))[: len(some)][good])
            kept.append(place[good])
    return Features(np.concatenate(values), labels[np.concatenate(kept)])
