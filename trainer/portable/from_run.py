"""Writes the model file of a run: its weights, calibrated on validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from linseed.trainer import checksum, files
from linseed.trainer.data import splits
from linseed.trainer.portable import calibration, model_file, preprocessing
from linseed.trainer.run import result as result_lib
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.weights import export
from linseed.trainer.weights.features import Features, computed

SAMPLE = 10_000  # validation images by which the temperature is fitted


def write(
    path: Path,
    weights: dict[str, Any],
    *,
    config: ml_collections.ConfigDict,
    experiment,
    result: Mapping[str, Any],
    workdir: Path,
) -> float:
    """Writes the model file of `weights`, {"params", "model_state"} as host arrays, to `path`; returns its temperature.

    experiment: the `experiment.Experiment` of `config`. result: `val`, `test`, `best_step` and `versions` as in
    `result.json`, of these weights. workdir: that of the run, which may hold a note of the weights that it started
    from. Raises ConfigError where the arrays of the network cannot be told apart by name.
    """
    tensors = export.tensors_of(weights, model=experiment.model)
    found = logits(experiment, weights, batch_size=config.eval.batch_size)
    temperature = calibration.temperature(found.values, found.labels)
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
    return temperature


def result_of(workdir: Path, weights: dict[str, Any], *, val: Mapping[str, Any]) -> dict[str, Any]:
    """What `result.json` in `workdir` says of `weights`; of others than its best `val` alone is known."""
    result = workdir_lib.read_result(workdir)
    if result and result.get("best_params_sha256") == result_lib.params_sha256(weights["params"]):
        return result
    return {"val": val, "test": None, "best_step": None, "versions": result_lib.versions()}


def logits(experiment, weights: dict[str, Any], *, batch_size: int) -> Features:
    """The logits of the validation images, float32 [N, C], and their labels; of at most `SAMPLE` images, drawn once."""
    val = experiment.val
    if len(val.labels) > SAMPLE:
        val = splits.take(val, np.sort(np.random.default_rng(0).permutation(len(val.labels))[:SAMPLE]))
    on_device, compute = jax.device_put(weights), jax.jit(experiment.logits)
    return computed(val, lambda images: compute(on_device, images), batch_size=batch_size)
