"""Planted faults and clean runs: do the checks and the curve doctor name the cause, and stay silent without one?

Each case takes a user's way: steps 1, 2 and 3 of `linseed tune`, then a plain run of the config and the curve doctor on
its curves and checkpoints. It ends with the first step that finds something, and the first finding counts.
"""

import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import ml_collections

from linseed import models
from linseed.scripts.bench import plants
from linseed.scripts.bench.diagnosis_cases import CLEAN, DATA, FAULTS, NETWORKS, base, with_changes
from linseed.trainer.config import canonical
from linseed.trainer.config.changes import changed
from linseed.trainer.data import sources
from linseed.trainer.errors import LinseedError, NonFiniteError, unknown_name
from linseed.trainer.experiment import Shared
from linseed.trainer.report import write as report
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records
from linseed.trainer.train import train_and_evaluate
from linseed.trainer.tuning import trials, tune
from linseed.trainer.tuning.budget import UNLIMITED
from linseed.trainer.tuning.diagnosis import curves
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.report import page

STEPS = ("check", "overfit", "lr")

_log = logging.getLogger(__name__)


class Said(NamedTuple):
    """The findings of the first step that has any, and that step."""

    step: str | None
    findings: list[dict[str, str]]
    seconds: float  # on the clock
    cpu_seconds: float

    def entry(self) -> dict[str, Any]:
        first = self.findings[0] if self.findings else {}
        return {
            "first_said": first.get("cause"),
            "said_by": self.step,
            "evidence": first.get("evidence"),
            "all_said": [finding["cause"] for finding in self.findings],
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
        }


def measure(*, faults: Sequence[str], clean: Sequence[str], epochs: float) -> dict[str, Any]:
    """Runs the planted faults, in each network on each data set, and the clean runs, and counts right first findings.

    faults: of `FAULTS`; clean: of `CLEAN`; epochs: of the plain runs, 0 for each config's own. A fault is named if it
    is the first finding in every network and data set. Raises LinseedError for an unknown fault or clean run.
    """
    for what, names, known in (("fault", faults, FAULTS), ("clean run", clean, CLEAN)):
        for name in names:
            if name not in known:
                raise LinseedError(unknown_name(what, name, known))
    more = {"horizon.epochs": epochs} if epochs else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(models.MODELS, plants.MODELS),
        mock.patch.object(report, "write"),  # nobody reads the pages of these runs
        mock.patch.object(report, "keep"),
        mock.patch.object(page, "write"),
    ):
        _keep_programs(Path(folder) / "programs")
        shared = Shared()
        planted = [
            _planted(name, network, data, Path(folder), more=more, shared=shared)
            for name, network, data in itertools.product(faults, NETWORKS, DATA)
        ]
        silent = [_clean(name, Path(folder), more=more, shared=shared) for name in clean]
    return {**_counts(planted, silent), "planted": planted, "clean": silent}


def _keep_programs(folder):
    """JAX keeps what it compiles: a fault in the labels or the rate runs the programs of other cases."""
    if jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _planted(name, network, data, folder, *, more, shared):
    fault, config = FAULTS[name], base(network, data)
    if fault.source:
        config = changed(config, {"data.source": plants.source(fault.source, folder, of=DATA[data])})
    if fault.model:
        config = changed(config, {"model.name": f"{fault.model}_{network}"})
    said = examine(with_changes(config, {**fault.changes, **more}), folder, shared=shared)
    entry = said.entry()
    named = entry["first_said"] in fault.expected
    about = {"planted": name, "network": network, "data": data, "held_out": fault.held_out}
    return _told({**about, "expected": list(fault.expected), "named": named, **entry})


def _clean(name, folder, *, more, shared):
    network, data, changes, held_out = CLEAN[name]
    said = examine(with_changes(base(network, data), {**changes, **more}), folder, shared=shared)
    return _told({"clean": name, "network": network, "data": data, "held_out": held_out, **said.entry()})


def _told(entry):
    """`entry`, also logged: the whole takes twenty minutes."""
    _log.info("%s", json.dumps(entry))
    return entry


def _counts(planted, clean):
    named, in_all = {}, set()
    for entry in planted:
        named.setdefault(entry["planted"], []).append(entry["named"])
    in_all = {name for name, found in named.items() if all(found)}
    held_out = {entry["planted"] for entry in planted if entry["held_out"]}
    silent = [entry for entry in clean if not entry["first_said"]]
    return {
        "faults": len(named),
        "named": len(in_all),
        "held_out": len(held_out),
        "named_of_held_out": len(in_all & held_out),
        "cases": len(planted),
        "named_cases": sum(entry["named"] for entry in planted),
        "clean_runs": len(clean),
        "clean_runs_without_alarm": len(silent),
        "clean_held_out": sum(entry["held_out"] for entry in clean),
        "clean_held_out_without_alarm": sum(entry["held_out"] for entry in silent),
        "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in [*planted, *clean]), 1),
        "ratio": round(len(in_all) / max(1, len(named)), 4),
        "ratio_is": "faults whose cause is the first finding in each network on each data set, over all faults",
    }


def examine(config: ml_collections.ConfigDict, folder: Path, *, shared: Shared) -> Said:
    """Steps 1 to 3, a plain run and the curve doctor, in a new folder within `folder`, up to the first finding."""
    began, cpu = time.monotonic(), time.process_time()
    workdir = Path(tempfile.mkdtemp(dir=folder))
    step, findings = next(((step, found) for step, found in _findings(config, workdir, shared) if found), (None, []))
    return Said(step, findings, time.monotonic() - began, time.process_time() - cpu)


def _findings(config, workdir, shared) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """The findings of each step, which is run when asked for."""
    for step in STEPS:
        options = dict(storage="", study="study", sampler="tpe", rates=(), decays=(), name="case", shared=shared)
        record = tune.tune(config, workdir / "study", step=step, budget=UNLIMITED, writer=Quiet(), **options)
        yield step, next(entry["findings"] for entry in record["steps"] if entry["name"] == step)
    yield "curves", [finding._asdict() for finding in _trained(config, workdir / "run", shared)]


def _trained(config, run, shared) -> list[Finding]:
    """The findings of the curve doctor on a plain run of `config`."""
    stopped = ""
    try:
        train_and_evaluate(config, run, writer=Quiet(), on_config_change="refuse", judge=("val",), shared=shared)
    except NonFiniteError as error:
        stopped = str(error)
    return curves.diagnose(
        read_records(run / workdir_lib.METRICS),
        num_classes=len(sources.load(**config.data.source).class_names),
        config=json.loads(canonical.to_json(config)),
        stopped=stopped,
        clean=None if stopped else trials.clean_pass(config, run, shared=shared),
    )
