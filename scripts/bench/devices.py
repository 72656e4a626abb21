"""One global batch over 1, 2, 4 and 8 virtual CPU devices: the cost of splitting it when no device is added."""

import inspect
import itertools
import statistics
import tempfile
from pathlib import Path

import jax
import ml_collections

from linseed.scripts.bench.child import in_child
from linseed.scripts.bench.turns import in_turns, ratio, stepper
from linseed.trainer.experiment import Shared, build
from linseed.trainer.runtime.data_parallel import BACKENDS, DataParallel

COUNTS = (1, 2, 4, 8)


def measure(*, config: ml_collections.ConfigDict, turn: int, rounds: int) -> dict:
    """config: what to train. turn: steps per turn. Runs in its own process, which has the devices."""
    found = in_child(_measure, config, devices=max(COUNTS), turn=turn, rounds=rounds)
    return {
        "model": config.model.name,
        "batch": config.data.batch_size,
        "rounds": rounds,
        "backends": found,
        "ratio": found["pmap"]["times_faster"][str(max(COUNTS))],
        "ratio_is": f"time of a step on one device over its time on {max(COUNTS)} devices that share the same cores",
    }


def _measure(config, *, turn, rounds):
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder), shared=Shared())
    step = inspect.unwrap(experiment.train_step)
    calls = {}
    for backend, count in itertools.product(BACKENDS, COUNTS):
        parallel = DataParallel(backend, devices=jax.devices()[:count])
        program = parallel.compile(step, donate=True)
        state, batch = parallel.replicate(experiment.state), parallel.shard(experiment.feed.batch(0))
        calls[backend, count] = stepper(_waited_for(program), state, [batch], steps=turn)
    times = in_turns(calls, rounds=rounds)
    return {
        backend: {
            "ms": {str(n): round(1e3 * statistics.median(times[backend, n].wall) / turn, 2) for n in COUNTS},
            "cpu_ms": {str(n): round(1e3 * statistics.median(times[backend, n].cpu) / turn, 2) for n in COUNTS},
            "times_faster": {str(n): round(ratio(times[backend, 1].wall, times[backend, n].wall), 3) for n in COUNTS},
        }
        for backend in BACKENDS
    }


def _waited_for(program):
    """`program`, waiting for its end: two with collectives in flight could deadlock."""
    return lambda state, batch: jax.block_until_ready(program(state, batch))
