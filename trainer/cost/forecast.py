"""What a run will cost, before it is run: parameters, FLOPs, memory, time, disk, and which rule hits what.

`forecast` builds the experiment in a folder of its own, counts what can be counted, and has `measure.py` time a handful
of steps. It opens no test split, and writes nothing into the workdir.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linseed.trainer.config.resolve import resolve
from linseed.trainer.cost.batch_size import Room, find_room
from linseed.trainer.cost.measure import Flops, Memory, Seconds, measure
from linseed.trainer.errors import WorkdirError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.optim import schedules
from linseed.trainer.run import workdir as workdir_lib

POINTS = 1000  # at how many steps a schedule is drawn


class Assignment(NamedTuple):
    """What the rules make of one parameter: multipliers of rate and decay, 0 where frozen."""

    path: str
    shape: tuple[int, ...]
    pattern: str
    lr: float
    decay: float
    frozen: bool


class Steps(NamedTuple):
    """A run, counted: optimiser steps in all, an epoch, of warm-up, and from one evaluation of validation to the next.

    The last evaluation is after the last step, whenever that is.
    """

    total: int
    per_epoch: float
    warmup: int
    eval_every: int

    def evaluations(self, *, after: int) -> int:
        """How many evaluations are left after step `after`."""
        return -(-self.total // self.eval_every) - after // self.eval_every if after < self.total else 0


class Rates(NamedTuple):
    """The learning rate `lr`, float32 [N], at `steps`, int64 [N], ascending from 0.

    at_most: the schedule follows the loss, and the rate is this while the loss gets better.
    """

    steps: np.ndarray
    lr: np.ndarray
    at_most: bool


class Disk(NamedTuple):
    """Snapshots, in bytes: one; how many there are at once at most; all of these; there now; free on their disk.

    free is None where there is no workdir to ask. Uncompressed: the disk holds a little more for each array's name, and
    less where arrays are full of zeros.
    """

    snapshot: int
    count: int
    needed: int
    present: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.needed - self.present <= self.free


class Standing(NamedTuple):
    """The run in the workdir. status: "none", "under way", "finished", or "of another config".

    step: of its newest snapshot, 0 without one. changed: "key: old -> new", where it is of another config.
    """

    status: str
    step: int = 0
    changed: tuple[str, ...] = ()


class Forecast(NamedTuple):
    """All of the above, of one config. parameters: how many in each top-level module. start: seconds to build it."""

    description: str
    parameters: dict[str, int]
    assignments: list[Assignment]
    steps: Steps
    rates: Rates
    flops: Flops
    memory: Memory
    start: float
    seconds: Seconds
    disk: Disk
    standing: Standing
    room: Room | None  # None where no limit is known, or the batch is all of the train split

    def run_seconds(self, *, after: int) -> float:
        """From the start of the command to the end of the run, where it goes on after step `after`; 0: the whole run.

        Without saving snapshots, and without the test split, whose size is sealed.
        """
        steps, evaluations = self.steps.total - after, self.steps.evaluations(after=after)
        seconds = self.seconds
        return self.start + seconds.compile + steps * seconds.step + evaluations * seconds.evaluation


def forecast(
    config: ml_collections.ConfigDict,
    *,
    workdir: Path | None,
    timed_steps: int,
    time_limit: float,
    memory_limit: int | None,
) -> Forecast:
    """What training with `config` will cost on this machine's devices.

    workdir: where the run would be, or is; only read. timed_steps: how many steps to time, after one that warms up;
    fewer, and at least one, once they have taken `time_limit` seconds together.
    memory_limit: bytes of a device to find the largest batch for; None: what the device itself says.
    Raises a LinseedError, whose message is one line, for all that would also stop the run.
    """
    config = resolve(config)
    found = standing(workdir, config)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="linseed-forecast-") as folder:
        experiment = build(config, Path(folder), shared=Shared())
        start = time.perf_counter() - began
        flops, memory, seconds = measure(experiment, config, timed_steps=timed_steps, time_limit=time_limit)
        limit = memory_limit or memory.limit
        room = find_room(experiment, config, limit=limit) if limit and config.data.batch_size else None
    steps = Steps(
        total=experiment.total_steps,
        per_epoch=len(experiment.train.labels) / experiment.batch_size,
        warmup=experiment.warmup_steps,
        eval_every=experiment.eval_every_steps,
    )
    # A snapshot is saved at each evaluation.
    snapshots = dict(keep_latest=config.checkpoint.keep_latest, evaluations=steps.evaluations(after=0))
    return Forecast(
        description=experiment.description,
        parameters=parameters_by_module(experiment.state.params),
        assignments=assignments(config.optimizer.rules, experiment.state.params),
        steps=steps,
        rates=rates(experiment.schedule, warmup_steps=steps.warmup, total_steps=steps.total),
        flops=flops,
        memory=memory,
        start=start,
        seconds=seconds,
        disk=disk(memory.state, **snapshots, workdir=workdir),
        standing=found,
        room=room,
    )


def parameters_by_module(params: Any) -> dict[str, int]:
    """How many parameters each top-level module of `params` has."""
    counts = Counter()
    for path, leaf in zip(rules_lib.paths(params), jax.tree.leaves(params), strict=True):
        counts[path.partition("/")[0]] += leaf.size
    return dict(counts)


def assignments(rules: Sequence[str], params: Any) -> list[Assignment]:
    """What `rules` make of each leaf of `params`. Raises ConfigError where they do not fit."""
    columns = (
        rules_lib.paths(params),
        jax.tree.leaves(params),
        rules_lib.assign(rules, params),
        jax.tree.leaves(rules_lib.lr_multipliers(rules, params)),
        jax.tree.leaves(rules_lib.decay_multipliers(rules, params)),
    )
    return [
        Assignment(path, leaf.shape, rule.pattern, lr, decay, rule.frozen)
        for path, leaf, rule, lr, decay in zip(*columns, strict=True)
    ]


def rates(schedule: Callable, *, warmup_steps: int, total_steps: int) -> Rates:
    """`schedule` at up to `POINTS` steps from the first to the last, evenly spaced but for the end of warm-up."""
    steps = np.union1d(np.linspace(0, total_steps - 1, POINTS).round().astype(np.int64), warmup_steps)
    follows_loss = isinstance(schedule, schedules.Plateau)

    def rate(step):
        if follows_loss:  # as if the loss always got better
            return schedule(schedule.init()._replace(count=step))
        return jnp.asarray(schedule(step), jnp.float32)

    return Rates(steps, np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(steps, jnp.int32))), at_most=follows_loss)


def disk(snapshot: int, *, keep_latest: int, evaluations: int, workdir: Path | None) -> Disk:
    """Room for snapshots of `snapshot` bytes: the latest `keep_latest`, the best, and the one being written."""
    count = min(evaluations, keep_latest + 2)
    if workdir is None:
        return Disk(snapshot, count, needed=count * snapshot, present=0, free=None)
    workdir = workdir.absolute()
    present = sum(path.stat().st_size for path in (workdir / workdir_lib.CHECKPOINTS).rglob("*") if path.is_file())
    disk_of = next(path for path in (workdir, *workdir.parents) if path.exists())
    return Disk(snapshot, count, needed=count * snapshot, present=present, free=shutil.disk_usage(disk_of).free)


def standing(workdir: Path | None, config: ml_collections.ConfigDict) -> Standing:
    """How far the run in `workdir` is, and whether it is of `config`. Raises WorkdirError where there can be no run."""
    if workdir is None:
        return Standing("none")
    if workdir.exists() and not workdir.is_dir():
        raise WorkdirError(f"--workdir={workdir} is a file; choose a folder")
    changed = workdir_lib.check_config(workdir, config, on_change="accept")
    if not (workdir / workdir_lib.CONFIG).exists():
        return Standing("none")
    # Listed, not opened: Orbax tidies up a folder that it opens.
    names = [path.name for path in (workdir / workdir_lib.CHECKPOINTS).glob("[0-9]*")]
    step = max((int(name) for name in names if name.isdigit()), default=0)
    if changed:
        return Standing("of another config", step, tuple(changed))
    return Standing("finished" if workdir_lib.read_result(workdir) else "under way", step)
