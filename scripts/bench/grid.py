"""Trials over learning rate, weight decay and seed: in separate processes, in one process, in one program.

Whole runs: `scripts.train` once per trial, which always evaluates test too, against repeated `train_and_evaluate` with
one `Shared`. Train steps: K trials in sequence against one program on K stacked states, by `jax.vmap` or `jax.lax.map`.
Each trial has its own rate, decay and weights, and all share the batch. Devices: every trial split over four virtual
devices, against one trial on each. All run at a constant rate. On a machine with other work the CPU time counts, not
the time on the clock.
"""

import inspect
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from linseed.configs import cifar10_small, digits, lecture_rates, replay
from linseed.scripts.bench.cases import synthetic
from linseed.scripts.bench.child import in_child
from linseed.scripts.bench.turns import in_turns, ratio, stepper
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import LinseedError, unknown_name
from linseed.trainer.experiment import Shared, build
from linseed.trainer.run.console import Quiet
from linseed.trainer.runtime.data_parallel import DataParallel
from linseed.trainer.train import train_and_evaluate

COUNTS = (1, 3, 12)  # trials
DEVICES = 4


class Case(NamedTuple):
    config: Callable  # folder of CIFAR-10, "" for none -> config
    most: int  # most trials in one program: more would take minutes
    share: float  # of the requested steps
    turn: int  # steps per turn


def _linear(root):
    config = resolve(digits.get_config())
    config.model = dict(name="linear")
    return config


def _speednet(root):
    config = resolve(cifar10_small.get_config(f"root={root}" if root else ""))
    if not root:
        synthetic(config, examples=2500, image_size=32)
    config.data.val_fraction, config.data.train_examples = 0.02, 2000
    config.optimizer.lr = 0.05  # without warm-up
    return config


CASES = {
    "linear": Case(_linear, most=12, share=1.0, turn=20),
    "mlp": Case(lambda root: resolve(lecture_rates.get_config()), most=12, share=1.0, turn=20),
    "cnn": Case(lambda root: resolve(digits.get_config()), most=12, share=1.0, turn=4),
    "speednet": Case(_speednet, most=3, share=0.1, turn=1),
}


def measure(*, models: list[str], trials: int, steps: int, root: str, rounds: int) -> dict:
    """models: of `CASES`; trials: their number; steps: per run; root: CIFAR-10 as class folders, or ""; rounds: turns.

    Without root speednet trains on synthetic images of the same size. Raises LinseedError for an unknown model.
    """
    for model in models or [""]:
        if model not in CASES:
            raise LinseedError(unknown_name("model of this benchmark", model, CASES))
    figures = {model: _measure(CASES[model], trials, steps=steps, root=root, rounds=rounds) for model in models}
    most = str(trials)
    return {
        "trials": trials,
        "rounds": rounds,
        "models": figures,
        "ratio": round(statistics.geometric_mean(found["runs"]["times_faster"][most] for found in figures.values()), 2),
        "ratio_is": f"time of {trials} runs in a process each, one cold start and the rest warm, over the time of all "
        "in one; geometric mean of the models",
    }


def _measure(case, trials, *, steps, root, rounds):
    steps = max(1, round(steps * case.share))
    counts = sorted({*(count for count in COUNTS if count <= trials), trials})
    configs = [_trial(case.config(root), index, steps=steps) for index in range(trials)]
    kwargs = {"turn": min(case.turn, steps), "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        few = [count for count in counts if count <= case.most]
        together = one_program(configs, folder, counts=few, **kwargs)
        devices = in_child(_over_devices, configs[:DEVICES], folder, devices=DEVICES, **kwargs)
        runs = _runs(configs, folder, counts=counts)
    source = configs[0].data.source.name
    batch = configs[0].data.batch_size
    return {"data": source, "batch": batch, "steps": steps, "runs": runs, "steps_of_trials": together, **devices}


def _trial(config, index, *, steps):
    """Trial `index` of a grid: four rates from the config's own down, three decays, and its own seed."""
    config.seed = index
    config.optimizer.lr *= 0.5 ** (index % 4)
    config.optimizer.weight_decay = (0.0, 1e-4, 1e-3)[index // 4 % 3]
    config.schedule = dict(name="constant", warmup_steps=0)
    config.horizon = dict(steps=steps)
    config.eval = dict(every_steps=-(-steps // 4), batch_size=256, views="none")
    config.log_every_steps = -(-steps // 4)
    return config


def _runs(configs, folder, *, counts):
    """Seconds of whole runs, from the start of a process to the last result, by the number of trials.

    Two runs have their own process, one before and one after the shared process. The first compiles (cold); the second
    loads the cached programs (warm), as all later ones would. So K processes cost cold + (K - 1) warm.
    """
    starts = {"cold": _train_command(configs[0], folder / "process0")}
    ends = in_child(_one_after_the_other, configs, folder, devices=1, began=time.monotonic())
    if len(configs) > 1:
        starts["warm"] = _train_command(configs[1], folder / "process1")
    shared = {str(count): ends[count - 1] for count in counts}
    own = {count: starts["cold"] + (int(count) - 1) * starts.get("warm", 0.0) for count in shared}
    return {
        "seconds_a_process": {start: round(spent[0], 2) for start, spent in starts.items()},
        "cpu_seconds_a_process": {start: round(spent[1], 2) for start, spent in starts.items()},
        "processes_are": "K in processes of their own: one cold start and K - 1 warm ones",
        "seconds_in_one_process": {count: round(end[0], 2) for count, end in shared.items()},
        "cpu_seconds_in_one_process": {count: round(end[1], 2) for count, end in shared.items()},
        "times_faster": {count: round(own[count][0] / end[0], 2) for count, end in shared.items()},
        "cpu_times_less": {count: round(own[count][1] / end[1], 2) for count, end in shared.items()},
    }


def _one_after_the_other(configs, folder, *, began):
    """(wall, CPU) seconds at the end of each run: since `began`, of `time.monotonic`, and of this process."""
    shared, ends = Shared(), []
    for index, config in enumerate(configs):
        workdir = folder / f"shared{index}"
        train_and_evaluate(config, workdir, writer=Quiet(), on_config_change="refuse", judge=("val",), shared=shared)
        ends.append((time.monotonic() - began, time.process_time()))
    return ends


def one_program(configs: list[ml_collections.ConfigDict], folder: Path, *, counts, turn, rounds) -> dict:
    """Train steps of the first K trials in one program, for each K of `counts`, against one after the other.

    For "vmap" and "map" and each K: milliseconds per step and trial, the speedup over separate trials, and the seconds
    of the first call (which compiles). Also the largest difference of a parameter from its separate trial after a turn
    of `turn` steps.
    """
    shared = Shared()
    experiments = [build(config, folder, shared=shared) for config in configs]
    parallel = DataParallel(configs[0].parallel.backend, devices=jax.devices()[:1])
    batches = [parallel.shard(experiments[0].feed.batch(step)) for step in range(turn)]
    step = inspect.unwrap(experiments[0].train_step)
    ways = {
        "vmap": jax.vmap(step, in_axes=(0, None)),
        "map": lambda states, batch: jax.lax.map(lambda state: step(state, batch), states),
    }
    programs = {name: parallel.compile(way, donate=True) for name, way in {"alone": step, **ways}.items()}

    def start(count):
        states = [experiment.state for experiment in experiments[:count]]
        return parallel.replicate(jax.tree.map(lambda *leaves: np.stack(leaves), *states))

    def follow(name, state):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(programs[name](state, batches[0]))
        seconds = time.perf_counter() - began
        for batch in batches[1:]:
            state, _ = programs[name](state, batch)
        return jax.device_get(state.params), seconds

    followed = [follow("alone", parallel.replicate(experiment.state)) for experiment in experiments[: max(counts)]]
    alone = [params for params, _ in followed]
    found = {"alone": {"first_call_seconds": round(followed[0][1], 2)}}
    calls = {"alone": stepper(programs["alone"], parallel.replicate(experiments[0].state), batches, steps=turn)}
    for way, count in itertools.product(ways, counts):
        params, seconds = follow(way, start(count))
        expected = jax.tree.map(lambda *leaves: np.stack(leaves), *alone[:count])
        gaps = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params, expected)
        difference = float(max(jax.tree.leaves(gaps)))
        found[f"{way}_{count}"] = {"first_call_seconds": round(seconds, 2), "difference": float(f"{difference:.2g}")}
        calls[f"{way}_{count}"] = stepper(programs[way], start(count), batches, steps=turn)
    times = in_turns(calls, rounds=rounds)
    for name, figures in found.items():
        count = int(name.rpartition("_")[2]) if name != "alone" else 1
        figures["ms"] = round(1e3 * statistics.median(times[name].wall) / turn / count, 3)
        figures["cpu_ms"] = round(1e3 * statistics.median(times[name].cpu) / turn / count, 3)
        figures["times_faster"] = round(count * ratio(times["alone"].wall, times[name].wall), 2)
        figures["cpu_times_less"] = round(count * ratio(times["alone"].cpu, times[name].cpu), 2)
    return found


def _over_devices(configs, folder, *, turn, rounds):
    """A step of each trial on `DEVICES` virtual devices: one trial per device against all trials on all devices."""
    shared = Shared()
    experiments = [build(config, folder, shared=shared) for config in configs]
    cut, step, batch = experiments[0].parallel, experiments[0].train_step, experiments[0].feed.batch(0)
    backend = configs[0].parallel.backend

    single = [DataParallel(backend, devices=[device]) for device in jax.devices()]
    own = [parallel.compile(inspect.unwrap(step), donate=True) for parallel in single]

    def steppers(places, programs, *, steps):
        return [
            stepper(program, place.replicate(experiment.state), [place.shard(batch)], steps=steps)
            for place, program, experiment in zip(itertools.cycle(places), programs, experiments, strict=False)
        ]

    def one_by_one(calls):
        # Two programs with collectives in flight can deadlock: their devices share threads.
        return lambda: [jax.block_until_ready(call()) for call in calls]

    def round_and_round(calls):
        return lambda: [call() for _ in range(turn) for call in calls]

    calls = {
        "data_parallel": one_by_one(steppers([cut], itertools.repeat(step), steps=turn)),
        "one_device": one_by_one(steppers(single[:1], itertools.repeat(own[0]), steps=turn)),
        "trial_a_device": round_and_round(steppers(single, own, steps=1)),
    }
    times = in_turns(calls, rounds=rounds)
    base = times["data_parallel"]
    return {
        f"over_{len(single)}_devices": {
            name: {
                "ms": round(1e3 * statistics.median(found.wall) / turn / len(experiments), 3),
                "cpu_ms": round(1e3 * statistics.median(found.cpu) / turn / len(experiments), 3),
                "times_faster": round(ratio(base.wall, found.wall), 2),
                "cpu_times_less": round(ratio(base.cpu, found.cpu), 2),
            }
            for name, found in times.items()
        }
    }


def _train_command(config, folder):
    """(wall, CPU) seconds of `scripts.train`, which caches its compiled programs next to `folder`."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array([time.monotonic(), usage.ru_utime + usage.ru_stime])

    path = folder.with_suffix(".json")
    path.write_text(canonical.to_json(config), encoding="utf-8")
    began = spent()
    train = [sys.executable, "-m", "scripts.train", f"--config={replay.__file__}:{path}", f"--workdir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run(train, env=environment, check=True, capture_output=True)
    return spent() - began
