"""Estimates a run's cost before it starts: parameters, FLOPs, memory, time, disk, and the rule of each parameter.

`forecast` builds the experiment in a temporary folder, counts what it can, and times a few steps with `measure.py`. It
opens no test split and writes nothing into the workdir.
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

POINTS = 1000  # number of steps at which a schedule is drawn


class Assignment(NamedTuple):
    """The rule of one parameter: its multipliers of learning rate and decay, 0 if frozen."""

    path: str
    shape: tuple[int, ...]
    pattern: str
    lr: float
    decay: float
    frozen: bool


class Steps(NamedTuple):
    """Numbers of optimiser steps: in all, per epoch, of warm-up, and between two evaluations of validation.

    The last evaluation is always after the last step.
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

    at_most: the schedule follows the loss; this is the rate if the loss keeps improving.
    """

    steps: np.ndarray
    lr: np.ndarray
    at_most: bool


class Disk(NamedTuple):
    """Bytes of checkpoints: of one; `count`, the most at once; of that many; already there; free on their disk.

    free is None without a workdir. Uncompressed: the disk holds a little more for array names, and less for arrays full
    of zeros.
    """

    checkpoint: int
    count: int
    needed: int
    present: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.needed - self.present <= self.free


class Standing(NamedTuple):
    """The run in the workdir. status: "none", "under way", "finished", or "of another config".

    step: of its newest checkpoint, 0 without one. changed: "key: old -> new", if it is of another config.
    """

    status: str
    step: int = 0
    changed: tuple[str, ...] = ()


class Forecast(NamedTuple):
    """The whole forecast of one config. parameters: number per top-level module. start: seconds to build it."""

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
    room: Room | None  # None without a known limit, or if the batch is all of the train split

    def run_seconds(self, *, after: int) -> float:
        """Seconds from the start of the command to the end of a run that resumes after step `after`; 0: the whole run.

        Excludes saving checkpoints, and the test split, whose size is sealed.
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
    """Forecasts the cost of training with `config` on this machine's devices.

    workdir: the run's, started or not; only read. timed_steps: how many steps to time after a warm-up step; at least
    one, but no more after `time_limit` seconds together. memory_limit: bytes of a device to find the largest batch for;
    None: as the device reports. Raises a LinseedError, with a one-line message, for any error that would also stop the
    run.
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
    # each evaluation saves a checkpoint
    checkpoints = dict(keep_latest=config.checkpoint.keep_latest, evaluations=steps.evaluations(after=0))
    return Forecast(
        description=experiment.description,
        parameters=parameters_by_module(experiment.state.params),
        assignments=assignments(
            rules_lib.with_layer_decay(config.optimizer.rules, config.optimizer.layer_decay), experiment.state.params
        ),
        steps=steps,
        rates=rates(experiment.schedule, warmup_steps=steps.warmup, total_steps=steps.total),
        flops=flops,
        memory=memory,
        start=start,
        seconds=seconds,
        disk=disk(memory.state, **checkpoints, workdir=workdir),
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
    """The rule of each leaf of `params`. Raises ConfigError if `rules` do not match them."""
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
    """`schedule` at up to `POINTS` evenly spaced steps from first to last, and at the end of warm-up."""
    steps = np.union1d(np.linspace(0, total_steps - 1, POINTS).round().astype(np.int64), warmup_steps)
    follows_loss = isinstance(schedule, schedules.Plateau)

    def rate(step):
        if follows_loss:  # as if the loss kept improving
            return schedule(schedule.init()._replace(count=step))
        return jnp.asarray(schedule(step), jnp.float32)

    return Rates(steps, np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(steps, jnp.int32))), at_most=follows_loss)


def disk(checkpoint: int, *, keep_latest: int, evaluations: int, workdir: Path | None) -> Disk:
    """Disk space for checkpoints of `checkpoint` bytes: the latest `keep_latest`, the best, and one being written."""
    count = min(evaluations, keep_latest + 2)
    if workdir is None:
        return Disk(checkpoint, count, needed=count * checkpoint, present=0, free=None)
    workdir = workdir.absolute()
    present = sum(path.stat().st_size for path in (workdir / workdir_lib.CHECKPOINTS).rglob("*") if path.is_file())
    disk_of = next(path for path in (workdir, *workdir.parents) if path.exists())
    return Disk(checkpoint, count, needed=count * checkpoint, present=present, free=shutil.disk_usage(disk_of).free)


def standing(workdir: Path | None, config: ml_collections.ConfigDict) -> Standing:
    """The progress of the run in `workdir`, and whether it has `config`. Raises WorkdirError if no run can be there."""
    if workdir is None:
        return Standing("none")
    if workdir.exists() and not workdir.is_dir():
        raise WorkdirError(f"--workdir={workdir} is a file; choose a folder")
    changed = workdir_lib.check_config(workdir, config, on_change="accept")
    if not (workdir / workdir_lib.CONFIG).exists():
        return Standing("none")
    # Listed, not opened: Orbax cleans up a folder that it opens.
    names = [path.name for path in (workdir / workdir_lib.CHECKPOINTS).glob("[0-9]*")]
    step = max((int(name) for name in names if name.isdigit()), default=0)
    if changed:
        return Standing("of another config", step, tuple(changed))
    return Standing("finished" if workdir_lib.read_result(workdir) else "under way", step)
