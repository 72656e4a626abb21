"""The cost of an experiment's compiled steps on this machine's devices: FLOPs, memory and seconds."""

import contextlib
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from linseed.trainer.data.splits import take
from linseed.trainer.errors import ConfigError
from linseed.trainer.experiment import Experiment
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.multi_step import first_carry, stacked

# Custom calls in a lowered program that do no arithmetic.
_PLACEMENT = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}


class Flops(NamedTuple):
    """XLA's count for one train step over all devices, None if the backend has none; `missing`: what it leaves out.

    It counts a loop as one iteration.
    """

    step: float | None
    missing: tuple[str, ...]


class StepBytes(NamedTuple):
    """The fields of the same names in `Memory`."""

    arguments: int
    temporaries: int
    peak: int


class Memory(NamedTuple):
    """Bytes. arguments, temporaries, peak: of the compiled step per device, None if the backend does not say.

    peak: the most that the step holds at once: arguments, temporaries and results without a place among the arguments.
    limit: of a device, None if it reports none. state: one copy of the train state. data: the train and validation
    images and labels on the host; images that stay in files do not count.
    """

    arguments: int | None
    temporaries: int | None
    peak: int | None
    limit: int | None
    state: int
    data: int


class Seconds(NamedTuple):
    """Of the train and evaluation steps: compile; the median of `timed` steps; one evaluation of validation."""

    compile: float
    step: float
    timed: int
    evaluation: float


def measure(
    experiment: Experiment, config: ml_collections.ConfigDict, *, timed_steps: int, time_limit: float
) -> tuple[Flops, Memory, Seconds]:
    """Compiles the train step, times a few, and evaluates a batch of validation; `experiment.state` is not changed.

    config: of `experiment`. timed_steps, time_limit: see `time_steps`. Raises ConfigError if a step does not fit into
    the device's memory.
    """
    parallel, steps = experiment.parallel, config.steps_per_call
    carry = parallel.replicate(first_carry(experiment.state, window=config.log_every_steps))
    resident = parallel.replicate(experiment.feed.resident)
    try:
        with contextlib.closing(experiment.feed.batches(0)) as batches:  # once, as they may come from worker processes

            def batches_of(count):
                return parallel.shard(stacked([next(batches) for _ in range(count)], steps_per_call=steps))

            def time_calls(carry, *, count, calls):
                counted = parallel.replicate(np.int32(count))
                return time_steps(
                    lambda carry, batch: compiled(carry, batch, resident, counted),
                    carry,
                    batch_at=lambda call: batches_of(count),
                    steps=calls,
                    time_limit=time_limit,
                )

            first = batches_of(1)
            began = time.perf_counter()
            lowered = experiment.train_steps.lower(carry, first, resident, parallel.replicate(np.int32(1)))
            compiled = lowered.compile()
            compile_step = time.perf_counter() - began
            count = 1
            if steps > 1:  # as many per call as in the loop, if there is time
                (one,), carry = time_calls(carry, count=1, calls=1)
                count = max(1, min(steps, timed_steps, int(time_limit / one)))
            timed, carry = time_calls(carry, count=count, calls=timed_steps // count)
        compile_evaluation, evaluation = _time_evaluation(experiment, carry["state"], batch_size=config.eval.batch_size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            "a train step or an evaluation does not fit into the device's memory; lower config.data.batch_size or "
            "config.eval.batch_size, or raise config.accumulation_parts"
        ) from error
    seconds = Seconds(
        compile_step + compile_evaluation, statistics.median(timed) / count, len(timed) * count, evaluation
    )
    flops = count_flops(
        lowered,
        devices=parallel.num_devices,
        optimizer=config.optimizer.name,
        accumulation_parts=config.accumulation_parts,
    )
    return flops, _memory(compiled, experiment), seconds


def time_steps(step: Callable, state, *, batch_at: Callable, steps: int, time_limit: float) -> tuple[list[float], Any]:
    """The seconds of up to `steps` calls of `step` after a warm-up call, and the final state.

    Stops early, after at least one, once they took `time_limit` seconds together. The next batch is made during the
    step, as in the loop, where the host runs ahead of the devices.
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


def count_flops(lowered: jax.stages.Lowered, *, devices: int, optimizer: str, accumulation_parts: int) -> Flops:
    """The FLOPs of a train step lowered for one device and not compiled.

    Before compilation a convolution is still visible, even if the backend then hands it to a library.
    """
    try:
        step = (lowered.cost_analysis() or {}).get("flops")
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        step = None
    missing = []
    calls = set(re.findall(r'custom_call @"?([^"(\s]+)', lowered.as_text())) - _PLACEMENT
    if calls:
        missing.append(f"the work of other libraries ({', '.join(sorted(calls))})")
    if accumulation_parts > 1:
        missing.append(
            f"all but one of the {accumulation_parts} parts of a batch: the total is up to {accumulation_parts} times "
            "as much"
        )
    if optimizer == "lbfgs":
        missing.append("all but one iteration of the line search")
    return Flops(step * devices if step and step > 0 else None, tuple(missing))


def _time_evaluation(experiment, state, *, batch_size):
    """Seconds to compile the evaluation step, and to evaluate all of validation.

    Estimated from one batch, evaluated twice: the first call includes compilation.
    """
    one_batch = take(experiment.val, np.arange(min(batch_size, len(experiment.val.labels))))
    weights = state_lib.evaluated_weights(state)
    marks = [time.perf_counter()]
    for _ in range(2):
        experiment.evaluate(weights, one_batch)
        marks.append(time.perf_counter())
    first, second = np.diff(marks).tolist()
    return max(0.0, first - second), second * -(-len(experiment.val.labels) // batch_size)


def step_bytes(compiled: jax.stages.Compiled) -> StepBytes | None:
    """XLA's memory analysis of a compiled step; None if the backend has none."""
    try:
        found = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if found is None:
        return None
    # XLA's own peak leaves out the temporaries on CPUs.
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    return StepBytes(
        arguments, temporaries, arguments + temporaries + found.output_size_in_bytes - found.alias_size_in_bytes
    )


def _memory(compiled, experiment):
    return Memory(
        *(step_bytes(compiled) or (None, None, None)),
        limit=(jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
        state=sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.state)),
        data=sum(part.images.nbytes + part.labels.nbytes for part in (experiment.train, experiment.val)),
    )
