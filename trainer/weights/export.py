"""A run's weights as a file of safetensors that `config.pretrained` reads, and timm where it has the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import ml_collections
import numpy as np
import safetensors.numpy

from linseed.models.names import to_torch, torch_name
from linseed.trainer import files
from linseed.trainer.errors import ConfigError
from linseed.trainer.weights.find import CARD_KEY, CROP_MODES


def write(
    weights: Mapping[str, Any],
    path: Path,
    *,
    model,
    config: ml_collections.ConfigDict,
    statistics: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
):
    """Writes `weights`, {"params", "model_state"} as host arrays, to `path`, under timm's names and in its axes.

    model: their network. statistics: by which images were normalised, on the 0..1 scale. The file's metadata say the
    network, how images are made, and the classes.
    """
    card = json.dumps(card_of(config, statistics=statistics, class_names=class_names))
    metadata = {"format": "pt", CARD_KEY: card}
    files.write(path, safetensors.numpy.save(tensors_of(weights, model=model), metadata=metadata))


def tensors_of(weights: Mapping[str, Any], *, model) -> dict[str, np.ndarray]:
    """The tensors of `weights`, as for `write`, by name. Raises ConfigError where two leaves have one name."""
    flat = flax.traverse_util.flatten_dict({"params": weights["params"], **weights["model_state"]}, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for key, values in flat.items():
        name = torch_name(key.partition("/")[2], model.torch_names)
        if name in tensors:
            raise ConfigError(f"two arrays of the network are called '{name}' in timm; rename one of {key}")
        tensors[name] = np.ascontiguousarray(to_torch(key, np.asarray(values)))
    return tensors


def card_of(
    config: ml_collections.ConfigDict, *, statistics: Mapping[str, np.ndarray], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """The network, the classes, and how images are made, as timm's config.json says it."""
    source, mean, std = config.data.source, *(np.ravel(statistics[key]).tolist() for key in ("mean", "std"))
    made = {"mean": mean, "std": std} if len(mean) == 3 else {}  # a mean image has no place in timm's card
    if size := source.get("image_size"):
        modes = {fit: mode for mode, fit in CROP_MODES.items()}
        made |= {"input_size": [3, size, size], "crop_pct": size / source.get("resize", size)}
        made |= {
            "interpolation": source.get("interpolation", "bilinear"),
            "crop_mode": modes[source.get("fit", "crop")],
        }
    return {
        "architecture": config.model.name,
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "pretrained_cfg": made,
    }
