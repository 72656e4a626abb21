"""Planted faults and clean runs: do the checks and the curve doctor name the cause, and stay silent without one?

Each case takes a user's way: steps 1, 2 and 3 of `scripts.tune`, then a plain run of the config and the curve doctor on
its curves. The first finding counts; the table holds all.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ml_collections

from linseed import models
from linseed.configs import digits
from linseed.scripts.bench import plants
from linseed.trainer.config import canonical
from linseed.trainer.config.changes import changed
from linseed.trainer.config.resolve import resolve
from linseed.trainer.data import sources
from linseed.trainer.errors import LinseedError, NonFiniteError, unknown_name
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records
from linseed.trainer.train import train_and_evaluate
from linseed.trainer.tuning import tune
from linseed.trainer.tuning.budget import UNLIMITED
from linseed.trainer.tuning.diagnosis import curves

STEPS = ("check", "overfit", "lr")


def _base(model, optimizer, **changes):
    """Digits, without anything that a small network does not need."""
    config = resolve(digits.get_config())
    config.model = dict(activation="relu", kernel_init="auto", dropout=0.0, **model)
    config.optimizer = dict(clip="global_norm", clip_norm=1.0, rules=("rest:",), lr_per_batch=0, **optimizer)
    config.label_smoothing, config.ema_decay = 0.0, 0.0
    config.schedule.warmup_epochs = 1.0
    config.horizon.epochs = 12.0
    config.log_every_steps = 10
    return changed(config, changes)


_ADAMW = dict(name="adamw", lr=1e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2)
_MOMENTUM = dict(name="momentum", lr=0.1, momentum=0.9, weight_decay=1e-4)

# Each learns digits without a planted fault: these are the clean runs.
BASES = {
    "cnn": _base(dict(name="cnn", widths=(16, 32), normalization="batch"), _ADAMW),
    "mlp": _base(dict(name="mlp", widths=(64, 64), normalization="none"), _MOMENTUM, **{"data.augment": ""}),
}


class Fault(NamedTuple):
    """A fault planted in a base of `BASES`. expected: keys of `findings.CAUSES`, any of which is right."""

    base: str
    changes: Mapping[str, Any]  # dotted keys of the config
    expected: Sequence[str]
    source: str = ""  # of plants.SOURCES


FAULTS = {
    "lr 100x too high": Fault("mlp", {"optimizer.lr": 10.0}, ("lr_too_high",)),
    "lr 1000x too low": Fault("mlp", {"optimizer.lr": 1e-4}, ("lr_too_low",)),
    "zero weights": Fault("mlp", {"model.name": "zero_weights"}, ("zero_weights",)),
    "init scale x 30": Fault("mlp", {"model.name": "init_30"}, ("bad_init",)),
    "labels shuffled": Fault("cnn", {}, ("shuffled_labels",), source="shuffled_labels"),
    "pixels of 0 to 255": Fault("mlp", {"data.mean": (0.0,), "data.std": (1 / 255,)}, ("input_scale",)),
    "softmax twice": Fault("cnn", {"model.name": "softmax_output"}, ("double_softmax",)),
    "dead ReLUs": Fault("mlp", {"model.name": "dead_relus"}, ("dead_units",)),
    "decay 10": Fault("mlp", {"optimizer.weight_decay": 10.0}, ("decay_too_high",)),
    # A square of 16 pixels suits 32x32 images.
    "augmentation hides the digit": Fault("cnn", {"data.augment": "pad_crop(1)|cutout(16)"}, ("augmentation",)),
    "validation inverted": Fault("cnn", {}, ("val_distribution",), source="inverted_validation"),
    "too small a net": Fault("cnn", {"model.widths": (1, 2)}, ("too_small", "underfit")),
}


class Said(NamedTuple):
    """The findings of a case, in the order of the steps, each with the step that made it."""

    findings: list[tuple[str, dict[str, str]]]
    val_accuracy: float | None  # of the plain run's best checkpoint; None if the run failed
    seconds: float  # on the clock
    cpu_seconds: float

    @property
    def causes(self) -> list[str]:
        return [finding["cause"] for _, finding in self.findings]

    def entry(self) -> dict[str, Any]:
        step, finding = self.findings[0] if self.findings else (None, {})
        return {
            "first_said": finding.get("cause"),
            "said_by": step,
            "evidence": finding.get("evidence"),
            "all_said": [f"{step}: {finding['cause']}" for step, finding in self.findings],
            "val_accuracy": self.val_accuracy,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
        }


def measure(*, faults: Sequence[str], seeds: int, epochs: float) -> dict[str, Any]:
    """Runs the planted faults and the clean runs, and counts the right first findings.

    faults: of `FAULTS`; seeds: number of clean runs, over the bases in turn; epochs: of the plain runs, 0 for each
    base's own. Raises LinseedError for an unknown fault.
    """
    for name in faults:
        if name not in FAULTS:
            raise LinseedError(unknown_name("fault", name, FAULTS))
    more = {"horizon.epochs": epochs} if epochs else {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(models.MODELS, plants.MODELS):
        folder = Path(folder)
        table = [_planted(name, FAULTS[name], folder, more=more) for name in faults]
        clean = []
        for seed, base in zip(range(seeds), itertools.cycle(BASES), strict=False):
            said = examine(changed(BASES[base], {"seed": seed, **more}), folder)
            clean.append({"base": base, "seed": seed, **said.entry()})
    silent = [entry for entry in clean if not entry["first_said"]]
    named = sum(entry["named"] for entry in table)
    return {
        "faults": len(table),
        "named": named,
        "clean_seeds": seeds,
        "clean_seeds_without_alarm": len(silent),
        "planted": table,
        "clean": clean,
        "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in [*table, *clean]), 1),
        "ratio": round(named / max(1, len(table)), 4),
        "ratio_is": "planted faults whose cause is the first finding, over all planted faults",
    }


def _planted(name, fault, folder, *, more):
    config = BASES[fault.base]
    if fault.source:
        kwargs = {key: value for key, value in config.data.source.items() if key != "name"}
        config = changed(config, {"data.source": plants.source(fault.source, folder, **kwargs)})
    said = examine(changed(config, {**fault.changes, **more}), folder)
    entry = said.entry()
    return {
        "planted": name,
        "base": fault.base,
        "expected": list(fault.expected),
        "named": entry["first_said"] in fault.expected,
        **entry,
    }


def examine(config: ml_collections.ConfigDict, folder: Path) -> Said:
    """Runs steps 1 to 3, a plain run and the curve doctor on `config`, in a new folder within `folder`."""
    began, cpu = time.monotonic(), time.process_time()
    workdir = Path(tempfile.mkdtemp(dir=folder))
    findings = []
    for step in STEPS:
        options = dict(storage="", study="study", sampler="tpe", rates=(), decays=(), name="case")
        record = tune.tune(config, workdir / "study", step=step, budget=UNLIMITED, writer=Quiet(), **options)
        found = next(entry for entry in record["steps"] if entry["name"] == step)
        findings += [(step, finding) for finding in found["findings"]]
    run, val_accuracy, stopped = workdir / "run", None, ""
    try:
        result = train_and_evaluate(config, run, writer=Quiet(), on_config_change="refuse", judge=("val",))
        val_accuracy = round(result["val"]["accuracy"], 4)
    except NonFiniteError as error:
        stopped = str(error)
    diagnosis = curves.diagnose(
        read_records(run / workdir_lib.METRICS),
        num_classes=len(sources.load(**config.data.source).class_names),
        config=json.loads(canonical.to_json(config)),
        stopped=stopped,
    )
    findings += [("curves", finding._asdict()) for finding in diagnosis]
    return Said(findings, val_accuracy, time.monotonic() - began, time.process_time() - cpu)
