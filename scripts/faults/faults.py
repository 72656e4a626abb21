"""Tries each fault many times: runs killed or told to stop, damaged files, full disks, hostile inputs.

Counts how often the promise of docs/reliability.md held. It must hold each time.
"""

import collections
import functools
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseed.scripts.bench.cases import tiny
from linseed.scripts.bench.child import in_child
from linseed.scripts.cli import moments
from linseed.scripts.faults import (
    config_mutations,
    damage,
    faulty,
    folders,
    full_disk,
    mutations,
    studies,
    two_processes,
)
from linseed.trainer.config.changes import changed
from linseed.trainer.errors import LinseedError, unknown_name
from linseed.trainer.experiment import Shared
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.compare import differences

TERMINATED = 143  # exit status of a run that SIGTERM ended: 128 + 15
CONFIGS, INPUTS = 200, 500
TRAINED = 10  # of the mutated configs that can be built
_SHOWN = 10  # failures to report
_EVALUATED_EVERY = 40  # steps, in a run that is told to stop


def measure(*, parts: Sequence[str], kills: int, signals: int, seed: int) -> dict:
    """parts: names in `PARTS`. kills, signals: how many runs get SIGKILL, SIGTERM. seed: of all random draws."""
    for name in parts:
        if name not in PARTS:
            raise LinseedError(unknown_name("part of the faults", name, PARTS))
    sizes = {"kills": kills, "signals": signals}
    found = {}
    for name in parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"faults_{name}_") as folder:
            tally = PARTS[name](Path(folder), rng=np.random.default_rng([seed, len(found)]), size=sizes.get(name, 0))
        found[name] = {**tally.as_json(), "seconds": round(time.monotonic() - began, 1)}
        print(f"{name}: {found[name]['held']}", file=sys.stderr, flush=True)
    held, tried = (sum(figures[key] for figures in found.values()) for key in ("count_held", "count_tried"))
    return {
        "parts": found,
        "ratio": held / tried if tried else None,
        "ratio_is": "share of the faults for which the promise held",
    }


class Tally:
    """The number of trials, their failures, and further figures."""

    def __init__(self, **more: Any):
        self.tried, self.failures, self.more = 0, [], more

    def add(self, name: str, wrong: str):
        """Adds a trial; wrong: what went wrong, "" if nothing did."""
        self.tried += 1
        if wrong:
            self.failures.append(f"{name}: {wrong}")

    def as_json(self) -> dict:
        """The figures."""
        held = self.tried - len(self.failures)
        words = f"{held} of {self.tried}" if self.tried else "not tried"
        return {
            "held": words,
            "count_held": held,
            "count_tried": self.tried,
            "failures": self.failures[:_SHOWN],
            **self.more,
        }


def _kills(folder: Path, *, rng, size) -> Tally:
    """`size` runs, each killed once (SIGKILL) at a random moment, restarted, and compared with a straight one."""
    config, straight = tiny(), folder / "straight"
    _warm_up(config, folder)
    timeline = moments.Run(config, straight).timeline()
    landed = collections.Counter()
    tally = Tally(stages=landed, too_late=0)
    for number, moment in enumerate(moments.draw(size, timeline=timeline, rng=rng)):
        workdir = folder / f"killed{number}"
        # A kill that came too late is no trial; the next comes earlier.
        for seconds in (moment.seconds, moment.seconds / 4, 0.0):
            run = moments.Run(config, workdir)
            if run.end_at(moment._replace(seconds=seconds), by=signal.SIGKILL):
                landed[moment.stage] += 1
                tally.add(f"{number}, {moment.stage}", _resumed(config, straight, workdir))
                break
            tally.more["too_late"] += 1
            workdir = folder / f"{workdir.name}_again"
        else:
            tally.add(f"{number}, {moment.stage}", "the run always ended before the kill")
    return tally


def _resumed(config, straight, workdir):
    """ "" if the same command resumes after the last checkpoint and ends like the straight run, or the difference."""
    try:
        return _gone_on(config, workdir) or "; ".join(differences(straight, workdir))
    except LinseedError as error:
        return str(error)


def _gone_on(config, workdir):
    """Runs the same command to the end; "" if it resumed after the last checkpoint. Raises as `moments.Run.finish`."""
    saved = 0 if (workdir / workdir_lib.RESULT).exists() else _saved(workdir)  # a finished run has nothing left to do
    run = moments.Run(config, workdir)
    run.finish()
    return "" if run.resumed_after() == saved else f"step {saved} was saved, but it resumed after {run.resumed_after()}"


def _saved(workdir):
    """The step of the last checkpoint in `workdir`, or 0."""
    checkpoints = workdir / workdir_lib.CHECKPOINTS
    return max((int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdigit()), default=0)


def _signals(folder: Path, *, rng, size) -> Tally:
    """`size` runs, each sent one SIGTERM: status 143, a checkpoint of the last logged step, the same end.

    The signal comes while they compile, step, evaluate or save, in turn. Each step is logged, but none after the saved
    one.
    """
    config = changed(tiny(), {"log_every_steps": 1, "horizon": {"steps": 400}, "eval.every_steps": _EVALUATED_EVERY})
    config = changed(config, {"schedule": {"name": "constant", "warmup_steps": 0}, "optimizer.lr": 0.003})
    straight = folder / "straight"
    _warm_up(config, folder)
    timeline = moments.Run(config, straight).timeline()
    result = workdir_lib.read_result(straight)
    landed = collections.Counter()
    tally = Tally(stages=landed, too_late=0)
    for number, stage in zip(range(size), itertools.cycle(("compile", "steps", "evaluation", "save")), strict=False):
        workdir = folder / f"told{number}"
        logged = int(rng.integers(1, timeline.records // 2))
        if stage == "evaluation":
            logged += -logged % _EVALUATED_EVERY - 1  # the next step is evaluated
        span = timeline.first_record - timeline.config if stage == "compile" else moments.BRIEF[stage]
        run = moments.Run(config, workdir)
        if run.end_at(moments.Moment(stage, logged, float(rng.uniform(0, span))), by=signal.SIGTERM):
            landed[stage] += 1
        else:
            tally.more["too_late"] += 1
        tally.add(f"{number}, {stage}", _told(run, config, result))
    return tally


def _told(run, config, straight):
    if run.wait() != TERMINATED:
        return f"status {run.wait()} instead of {TERMINATED}: {run.last_line()}"
    saved = _saved(run.workdir)
    logged = run.records()[-1]["step"] if run.records() else 0
    if saved < logged:
        return f"step {logged} was logged, but step {saved} saved"
    try:
        wrong = _gone_on(config, run.workdir)
    except LinseedError as error:
        return str(error)
    ended = workdir_lib.read_result(run.workdir)
    if ended["params_sha256"] != straight["params_sha256"]:
        return "the parameters differ from the straight run's"
    return wrong


def _warm_up(config, folder):
    """Compiles the programs that the runs in `folder` then load, so all take the same time."""
    moments.Run(config, folder / "warm_up").finish()


def _damage(folder: Path, *, rng, size) -> Tally:
    """Every case of `damage.CASES`, each trained to the end, and of `folders.CASES`."""
    bench, tally = damage.Bench(tiny(), folder), Tally()
    for name, case in {**damage.CASES, **folders.CASES}.items():
        tally.add(name, case(bench))
    return tally


def _studies(folder: Path, *, rng, size) -> Tally:
    """Every case of `studies.CASES` on a study of a few trials."""
    config, straight, tally = tiny(), folder / "straight", Tally()
    go_on = functools.partial(studies.go_on, config)
    go_on(straight)
    for number, name in enumerate(studies.CASES):
        tally.add(name, studies.damaged(straight, folder / f"copy{number}", name=name, go_on=go_on))
    return tally


def _full_disk(folder: Path, *, rng, size) -> Tally:
    """Disks that fill up after a random record: status 2 and one line about it; with free space again, the same end."""
    config, straight = tiny(), folder / "straight"
    _warm_up(config, folder)
    timeline = moments.Run(config, straight).timeline()
    tally = Tally(skipped="")
    for records in sorted(rng.permutation(np.arange(1, timeline.records - 2))[:5]):
        try:
            with full_disk.small_disk(folder / f"disk{records}") as disk:
                tally.add(f"after record {records}", _filled(config, straight, disk, records=int(records)))
        except full_disk.NoMountError as error:
            tally.more["skipped"] = f"no tmpfs can be mounted here: {error}"
            break
    return tally


def _filled(config, straight, disk, *, records):
    filler, workdir = full_disk.Filler(disk), disk / "run"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(straight.parent / ".jax_cache")}
    run = moments.Run(config, workdir, environment=environment)
    run.when(moments.Moment("steps", records, 0.0), filler.fill)
    status, line = run.wait(), run.last_line()
    filler.free()
    if status != 2 or not line.startswith("error: ") or "full" not in line:
        return f"status {status}: {line}"
    try:
        moments.Run(config, workdir, environment=environment).finish()
        return "; ".join(differences(straight, workdir))
    except LinseedError as error:
        return str(error)


def _two_processes(folder: Path, *, rng, size) -> Tally:
    """Every fault in either of two processes; then a restart with one process more or fewer."""
    bench = two_processes.Bench(folder)
    tally = Tally(ended_after_seconds=bench.seconds, ended_with_status=bench.statuses)
    tally.add("undisturbed", bench.undisturbed())
    for fault in faulty.FAULTS:
        for index in range(2):
            tally.add(f"process {index} {fault}", bench.grief(fault, index))
    for devices in ([2], [1], [1, 1, 1]):
        tally.add(f"resumed by processes with {devices} devices", bench.goes_on(devices))
    return tally


def _configs(folder: Path, *, rng, size) -> Tally:
    """Mutated configs: refused in one line or built, and some of them trained for two steps."""
    base, shared, counts = tiny(), Shared(), collections.Counter()
    tally = Tally(came_to=counts)
    while tally.tried < CONFIGS:
        changes = config_mutations.draw(rng, base)
        config = config_mutations.apply(base, changes)
        if config is None:
            continue
        try:
            came_to = config_mutations.outcome(config, folder, shared=shared)
            counts[came_to] += 1
            if came_to == "built" and counts["trained"] + counts["stopped"] < TRAINED:
                counts[config_mutations.train(config, folder / f"run{tally.tried}", shared=shared)] += 1
            tally.add("", "")
        except Exception as error:
            tally.add(repr(changes)[:200], f"{type(error).__name__}: {error}")
    return tally


def _inputs(folder: Path, *, rng, size) -> Tally:
    """Mutated images and archives, read in a separate process."""
    found = in_child(mutations.try_inputs, INPUTS, seed=int(rng.integers(2**31)), bounded=True, devices=1)
    tally = Tally(**{key: found[key] for key in ("loaded", "skipped", "resident_mb")})
    tally.tried, tally.failures = found["inputs"], found["failures"]
    return tally


PARTS: dict[str, Callable[..., Tally]] = {
    "kills": _kills,
    "signals": _signals,
    "damage": _damage,
    "studies": _studies,
    "full_disk": _full_disk,
    "two_processes": _two_processes,
    "configs": _configs,
    "inputs": _inputs,
}
