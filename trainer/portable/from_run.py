"""Writes the model file of a run: its weights, calibrated on validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.portable import model_file, preprocessing
from linseed.trainer.run import result as result_lib
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.weights import export


def write(
    path: Path,
    weights: dict[str, Any],
    *,
    config: ml_collections.ConfigDict,
    experiment,
    temperature: float,
    result: Mapping[str, Any],
    workdir: Path,
):
    """Writes the model file of `weights`, {"params", "model_state"} as host arrays, to `path`.

    experiment: the `experiment.Experiment` of `config`. temperature: of their logits on validation. result: `val`,
    `test`, `best_step` and `versions` as in `result.json`, of these weights. workdir: that of the run, which may hold a
    note of the weights that it started from. Raises ConfigError where the names of two arrays of the network are equal.
    """
    tensors = export.tensors_of(weights, model=experiment.model)
    statistics = {key: np.asarray(values).tolist() for key, values in experiment.statistics.items()}
    read_as = preprocessing.of_run(config.data.source, image_shape=experiment.train.images.shape[1:])
    card = {
        **export.card_of(config, statistics=experiment.statistics, class_names=experiment.class_names),
        "preprocessing": {**read_as._asdict(), **statistics},
        "temperature": temperature,
        "accuracy": {"val": result["val"], "test": result["test"]},
        "data": {"fingerprint": experiment.fingerprint, "test_fingerprint": experiment.test.fingerprint},
        "pretrained": checksum.loads(files.read(workdir / workdir_lib.PRETRAINED) or b""),
        "best_step": result["best_step"],
        "config": config.to_dict(),
        "versions": result["versions"],
    }
    model_file.write(path, card=card, tensors=tensors)


def result_of(workdir: Path, weights: dict[str, Any], *, val: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` in `workdir` says of `weights`; of others than its best `val` alone is known."""
    result = workdir_lib.read_result(workdir)
    if result and result.get("best_params_sha256") == result_lib.params_sha256(weights["params"]):
        return result
    return {"val": val, "test": None, "best_step": None, "versions": result_lib.versions()}
