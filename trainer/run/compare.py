"""Compares the runs in two workdirs, bit for bit."""

import itertools
import json
from pathlib import Path

import numpy as np

from linseed.trainer.errors import WorkdirError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import read_arrays
from linseed.trainer.run.metrics_log import read_records

CLOCK = ("images_per_second",)  # keys of a record that a clock measured
RESULT = ("params_sha256", "best_params_sha256", "best_step", "steps", "stop_reason", "val", "test")


def differences(first: Path, second: Path) -> list[str]:
    """One line for each difference between two finished runs; [] if they are the same.

    Compares the hashes and figures of `result.json`, and the records of `metrics.jsonl` without the keys of `CLOCK`. If
    the hashes of the parameters differ, names the first array that differs in the last checkpoints. Raises WorkdirError
    if a run is not finished, CheckpointError if its last checkpoint cannot be read.
    """
    results = [_result(workdir) for workdir in (first, second)]
    found = [f"{key}: {results[0][key]} -> {results[1][key]}" for key in RESULT if results[0][key] != results[1][key]]
    logs = [read_records(workdir / workdir_lib.METRICS) for workdir in (first, second)]
    for one, other in itertools.zip_longest(*logs, fillvalue={}):
        keys = [key for key in {**one, **other} if key not in CLOCK and _text(one.get(key)) != _text(other.get(key))]
        if keys:
            step, key = one.get("step", other.get("step")), keys[0]
            found.append(f"metrics.jsonl at step {step}, {key}: {one.get(key, 'absent')} -> {other.get(key, 'absent')}")
            break
    if results[0]["params_sha256"] != results[1]["params_sha256"]:
        folders = [workdir / workdir_lib.CHECKPOINTS for workdir in (first, second)]
        arrays = [read_arrays(folder, step=result["steps"]) for folder, result in zip(folders, results, strict=True)]
        found.append(first_difference(*arrays))
    return found


def first_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str:
    """The name of the first array that differs between two states, {path: array}, and by how much; "" if none."""
    for path in sorted(one.keys() | other.keys()):
        if path not in one or path not in other:
            return f"first difference in the last checkpoints: {path} is in one of them only"
        a, b = one[path], other[path]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"first difference in the last checkpoints: {path}, {a.dtype} {a.shape} -> {b.dtype} {b.shape}"
        if a.tobytes() != b.tobytes():
            most = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            return f"first difference in the last checkpoints: {path}, by at most {most:.3g}"
    return ""


def _result(workdir):
    result = workdir_lib.read_result(workdir)
    if result is None:
        raise WorkdirError(f"{workdir} holds no finished run; train it to its end first")
    return result


def _text(value):
    return json.dumps(value)  # as text, NaN equals NaN
