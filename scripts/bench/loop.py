"""The cost of the training loop: images/s of whole runs over those of the bare compiled step on one resident batch."""

import statistics
import tempfile
import time
from pathlib import Path

import jax

from linseed.trainer.experiment import Shared, build
from linseed.trainer.run.console import Quiet
from linseed.trainer.train import train_and_evaluate
from linseed.trainer.tuning.trials import at_constant_rate


def measure(*, config, steps: int, rounds: int) -> dict:
    """config: what to train; all rounds share one program. steps: of a run, and of the bare step in each round.

    The run logs every `config.log_every_steps`, evaluates and saves twice, and draws its batches as always. Its
    images/s are from its `result.json`: all steps except those that waited for the compiler, without evaluations.
    """
    config = at_constant_rate(
        config, steps=steps, eval_every_steps=-(-steps // 2), log_every_steps=config.log_every_steps
    )
    shared, rates = Shared(), {"run": [], "bare": [], "run_cpu": [], "bare_cpu": []}
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder), shared=shared)
        for round_ in range(rounds + 1):  # the first compiles
            for name, figures in (
                ("run", _run(config, Path(folder) / str(round_), shared=shared)),
                ("bare", _bare(experiment, steps=steps)),
            ):
                if round_:
                    rates[name].append(figures[0])
                    rates[f"{name}_cpu"].append(figures[1])
    return {
        "model": config.model.name,
        "batch": config.data.batch_size,
        "steps": steps,
        "rounds": rounds,
        "steps_per_call": config.steps_per_call,
        "resident": bool(experiment.feed.resident),
        "images_per_second": round(statistics.median(rates["run"])),
        "bare_images_per_second": round(statistics.median(rates["bare"])),
        # Of the whole run, with evaluations and saves: an upper bound of the loop's cost.
        "cpu_seconds_over_bare": round(_median_ratio(rates["run_cpu"], rates["bare_cpu"]), 3),
        "ratio": round(_median_ratio(rates["run"], rates["bare"]), 3),
        "ratio_is": "images/s of train_and_evaluate over those of the bare step, median over rounds",
    }


def _run(config, workdir, *, shared):
    """(images/s, CPU seconds) of a whole run."""
    cpu = time.process_time()
    result = train_and_evaluate(
        config, workdir, writer=Quiet(), on_config_change="refuse", judge=("val",), shared=shared
    )
    return result["images_per_second"], time.process_time() - cpu


def _bare(experiment, *, steps):
    """(images/s, CPU seconds) of the compiled step, repeated on one batch; the first two calls do not count."""
    state = experiment.parallel.replicate(experiment.state)
    batch = experiment.parallel.shard(experiment.feed.batch(0))
    for step in range(steps + 2):
        if step == 2:
            jax.block_until_ready(state)
            began, cpu = time.perf_counter(), time.process_time()
        state, _ = experiment.train_step(state, batch)
    jax.block_until_ready(state)
    return steps * experiment.batch_size / (time.perf_counter() - began), time.process_time() - cpu


def _median_ratio(over, under):
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
