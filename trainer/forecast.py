"""What a run will cost, before it is run: parameters, FLOPs, memory, time, disk, and which rule hits what.

`forecast` builds the experiment in a folder of its own, compiles the train step, times a handful of steps and
evaluates one batch. It opens no test split, and writes nothing into the workdir.
"""

import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from trainer import config as config_lib
from trainer import rules as rules_lib
from trainer import schedules
from trainer import state as state_lib
from trainer import workdir as workdir_lib
from trainer.data.splits import Split
from trainer.errors import ConfigError, WorkdirError
from trainer.experiment import Experiment, Shared, build

POINTS = 1000  # at how many steps a schedule is drawn

# Marks in a lowered program that stand for no arithmetic.
_PLACEMENT = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}


class Assignment(NamedTuple):
    """What the rules make of one parameter: multipliers of rate and decay, 0 where frozen."""

    path: str
    shape: tuple[int, ...]
    pattern: str
    lr: float
    decay: float
    frozen: bool


class Steps(NamedTuple):
    """A run, counted: optimiser steps in all, an epoch and of warm-up; and evaluations of validation."""

    total: int
    per_epoch: float
    warmup: int
    evaluations: int


class Rates(NamedTuple):
    """The learning rate `lr`, float32 [N], at `steps`, int64 [N], ascending from 0.

    at_most: the schedule follows the loss, and the rate is this while the loss gets better.
    """

    steps: np.ndarray
    lr: np.ndarray
    at_most: bool


class Flops(NamedTuple):
    """XLA's count of one train step over all devices, None where the backend has none; `missing`: what it leaves out.

    A loop counts as one round of it.
    """

    step: float | None
    missing: tuple[str, ...]


class Memory(NamedTuple):
    """Bytes. arguments, temporaries, peak: of the compiled step on each device, None where the backend does not say.

    peak: what the step holds at once: arguments, temporaries and those results that have no place among the arguments.
    limit: of a device, None where there is no limit of its own. state: one copy of the train state. data: the train and
    validation images and labels, on the host.
    """

    arguments: int | None
    temporaries: int | None
    peak: int | None
    limit: int | None
    state: int
    data: int


class Seconds(NamedTuple):
    """Measured: start (reading data, building), compile, the median of `timed` steps, one evaluation of validation.

    run: all of these over the whole run; without saving snapshots, and without the test split, whose size is sealed.
    """

    start: float
    compile: float
    step: float
    timed: int
    evaluation: float
    run: float


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

    step: of its newest snapshot. steps, evaluations, seconds: what is left. changed: "key: old -> new", where it is of
    another config.
    """

    status: str
    step: int
    steps: int
    evaluations: int
    seconds: float
    changed: tuple[str, ...]


class Forecast(NamedTuple):
    """All of the above, of one config. parameters: how many in each top-level module."""

    description: str
    parameters: dict[str, int]
    assignments: list[Assignment]
    steps: Steps
    rates: Rates
    flops: Flops
    memory: Memory
    seconds: Seconds
    disk: Disk
    standing: Standing


def forecast(
    config: ml_collections.ConfigDict,
    *,
    models: Mapping[str, Callable],
    workdir: Path | None,
    timed_steps: int,
    time_limit: float,
) -> Forecast:
    """What training with `config` will cost on this machine's devices.

    models: the table of models. workdir: where the run would be, or is; only read. timed_steps: how many steps to
    time, after one that warms up; fewer, and at least one, once they have taken `time_limit` seconds together.
    Raises a LinseedError, whose message is one line, for all that would also stop the run.
    """
    config_lib.validate(config, models=models)
    changed = _changed(workdir, config)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="linseed-forecast-") as folder:
        experiment = build(config, Path(folder), shared=Shared())
        start = time.perf_counter() - began
        steps, schedule = _steps(experiment, config)
        flops, memory, seconds = _measure(experiment, config, timed_steps=timed_steps, time_limit=time_limit)
    seconds = seconds._replace(start=start)
    seconds = seconds._replace(run=run_seconds(seconds, steps=steps.total, evaluations=steps.evaluations))
    return Forecast(
        description=experiment.description,
        parameters=parameters_by_module(experiment.state.params),
        assignments=assignments(config.optimizer.rules, experiment.state.params),
        steps=steps,
        rates=rates(schedule, warmup_steps=steps.warmup, total_steps=steps.total),
        flops=flops,
        memory=memory,
        seconds=seconds,
        disk=disk(
            memory.state, keep_latest=config.checkpoint.keep_latest, evaluations=steps.evaluations, workdir=workdir
        ),
        standing=_standing(workdir, experiment, seconds=seconds, changed=changed),
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


def evaluations_after(step: int, *, total_steps: int, every_steps: int) -> int:
    """How many evaluations are left after `step`: one every `every_steps`, and one at the end."""
    return -(-total_steps // every_steps) - step // every_steps if step < total_steps else 0


def run_seconds(seconds: Seconds, *, steps: int, evaluations: int) -> float:
    """How long a start takes, with `steps` and `evaluations` after it."""
    return seconds.start + seconds.compile + steps * seconds.step + evaluations * seconds.evaluation


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
    count = min(evaluations, keep_latest + 2)  # one is saved at each evaluation
    if workdir is None:
        return Disk(snapshot, count, needed=count * snapshot, present=0, free=None)
    workdir = workdir.absolute()
    present = sum(path.stat().st_size for path in (workdir / workdir_lib.CHECKPOINTS).rglob("*") if path.is_file())
    disk_of = next(path for path in (workdir, *workdir.parents) if path.exists())
    return Disk(snapshot, count, needed=count * snapshot, present=present, free=shutil.disk_usage(disk_of).free)


def _steps(experiment: Experiment, config):
    """`(Steps, schedule)`."""
    num_examples, batch_size, total = len(experiment.train.labels), experiment.batch_size, experiment.total_steps
    schedule_kwargs = schedules.durations_to_steps(
        "schedule", config.schedule, num_examples=num_examples, batch_size=batch_size, total_steps=total
    )
    lr = schedules.scaled_lr(config.optimizer.lr, batch_size=batch_size, lr_per_batch=config.optimizer.lr_per_batch)
    steps = Steps(
        total=total,
        per_epoch=num_examples / batch_size,
        warmup=schedule_kwargs["warmup_steps"],
        evaluations=evaluations_after(0, total_steps=total, every_steps=experiment.eval_every_steps),
    )
    return steps, schedules.make_schedule(**schedule_kwargs, lr=lr, total_steps=total)


def _measure(experiment: Experiment, config, *, timed_steps, time_limit):
    """`(Flops, Memory, Seconds)`; the start and the whole run are left at 0."""
    parallel = experiment.parallel
    state = parallel.replicate(experiment.state)
    batch = parallel.shard(experiment.train_batch(0))
    began = time.perf_counter()
    lowered = experiment.train_step.lower(state, batch)
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    flops = _flops(lowered, config, devices=parallel.num_devices)
    memory = _memory(compiled, experiment)
    try:
        timed, state = time_steps(
            compiled,
            state,
            batch_at=lambda step: parallel.shard(experiment.train_batch(step)),
            steps=timed_steps,
            time_limit=time_limit,
        )
        # One batch of validation, twice: the first call waits for the compiler.
        size = config.eval.batch_size
        one_batch = Split(experiment.val.images[:size], experiment.val.labels[:size])
        weights = state_lib.evaluated_weights(state)
        marks = [time.perf_counter()]
        for _ in range(2):
            experiment.evaluate(weights, one_batch)
            marks.append(time.perf_counter())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            "a train step or an evaluation does not fit into the device's memory; lower config.data.batch_size or "
            "config.eval.batch_size, or raise config.accumulation_parts"
        ) from error
    compile_evaluation, one = np.diff(marks)
    seconds = Seconds(
        start=0.0,
        compile=compile_seconds + max(0.0, compile_evaluation - one),
        step=statistics.median(timed),
        timed=len(timed),
        evaluation=one * -(-len(experiment.val.labels) // size),
        run=0.0,
    )
    return flops, memory, seconds


def time_steps(step: Callable, state, *, batch_at: Callable, steps: int, time_limit: float) -> tuple[list[float], Any]:
    """The seconds of each of up to `steps` calls of `step`, after one that warms up, and the state after them.

    The next batch is made while the step is under way, as in the loop, where the host runs ahead of the devices.
    """
    seconds, batch = [], batch_at(0)
    began = mark = time.perf_counter()
    for index in range(steps + 1):
        results = step(state, batch)
        batch = batch_at(index + 1)
        state, _ = jax.block_until_ready(results)
        seconds.append(time.perf_counter() - mark)
        mark += seconds[-1]
        if index and mark - began > time_limit:
            break
    return seconds[1:], state


def _flops(lowered, config, *, devices):
    # Counted before compilation: what a backend hands to a library of its own, convolutions above all, still is a
    # convolution there.
    try:
        step = (lowered.cost_analysis() or {}).get("flops")
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        step = None
    missing = []
    calls = set(re.findall(r'custom_call @"?([^"(\s]+)', lowered.as_text())) - _PLACEMENT
    if calls:
        missing.append(f"what other libraries compute ({', '.join(sorted(calls))})")
    if config.accumulation_parts > 1:
        missing.append(
            f"all but one of the {config.accumulation_parts} parts of a batch: the whole is up to "
            f"{config.accumulation_parts} times the figure"
        )
    if config.optimizer.name == "lbfgs":
        missing.append("all but one round of the line search")
    return Flops(step * devices if step and step > 0 else None, tuple(missing))


def _memory(compiled, experiment):
    try:
        found = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        found = None
    arguments = temporaries = peak = None
    if found is not None:
        # XLA has a peak of its own, which on CPUs leaves the temporaries out.
        arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
        peak = arguments + temporaries + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        arguments=arguments,
        temporaries=temporaries,
        peak=peak,
        limit=(jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
        state=sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.state)),
        data=sum(array.nbytes for split in (experiment.train, experiment.val) for array in split),
    )


def _changed(workdir, config):
    """How `config` differs from that of the run in `workdir`. Raises WorkdirError where there can be no run."""
    if workdir is None:
        return []
    if workdir.exists() and not workdir.is_dir():
        raise WorkdirError(f"--workdir={workdir} is a file; choose a folder")
    return workdir_lib.check_config(workdir, config, on_change="accept")


def _standing(workdir, experiment, *, seconds, changed):
    nothing = Standing("none", step=0, steps=0, evaluations=0, seconds=0.0, changed=())
    if workdir is None or not (workdir / workdir_lib.CONFIG).exists():
        return nothing
    # Listed, not opened: Orbax tidies up a folder that it opens.
    names = [path.name for path in (workdir / workdir_lib.CHECKPOINTS).glob("[0-9]*")]
    nothing = nothing._replace(step=max((int(name) for name in names if name.isdigit()), default=0))
    if changed:
        return nothing._replace(status="of another config", changed=tuple(changed))
    if workdir_lib.read_result(workdir):
        return nothing._replace(status="finished")
    steps = experiment.total_steps - nothing.step
    evaluations = evaluations_after(
        nothing.step, total_steps=experiment.total_steps, every_steps=experiment.eval_every_steps
    )
    return nothing._replace(
        status="under way",
        steps=steps,
        evaluations=evaluations,
        seconds=run_seconds(seconds, steps=steps, evaluations=evaluations),
    )
