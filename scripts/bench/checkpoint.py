"""The cost of checkpoints: steps/s of runs that save every few steps over runs that save once, at the end."""

import statistics
import tempfile
import time
from pathlib import Path

import ml_collections

from linseed.scripts.bench.turns import ratio
from linseed.trainer.config.changes import changed
from linseed.trainer.errors import LinseedError
from linseed.trainer.experiment import Shared
from linseed.trainer.run.console import Quiet
from linseed.trainer.train import train_and_evaluate
from linseed.trainer.tuning.trials import at_constant_rate

_EVALUATED = 80  # images: eight of each of ten classes; a number that divides over 1, 2, 4, 5, 8, 10 or 16 devices


class _Clock(Quiet):
    """Notes the time of each record, in seconds."""

    def __init__(self):
        self.records = []

    def write(self, record):
        self.records.append((record["step"], time.perf_counter()))


def measure(*, config, steps: int, every: int, rounds: int) -> dict:
    """config: what to train, on ten classes. steps: per run. every: steps between two checkpoints.

    A checkpoint comes with an evaluation, here of a few images in one batch. Timed from the first record, at `every`
    steps, to the last. Raises LinseedError if these are the same.
    """
    if steps <= every:
        raise LinseedError(f"--steps={steps} has one checkpoint at most with --every={every}; raise --steps")
    config = evaluated_at_once(config)
    configs = {
        "saving": at_constant_rate(config, steps=steps, eval_every_steps=every, log_every_steps=every),
        "plain": at_constant_rate(config, steps=steps, eval_every_steps=steps, log_every_steps=every),
    }
    seconds, shared = {name: [] for name in configs}, Shared()
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(rounds + 1):  # the first compiles
            for name, variant in configs.items():
                clock, workdir = _Clock(), Path(folder) / f"{name}{round_}"
                train_and_evaluate(
                    variant, workdir, writer=clock, on_config_change="refuse", judge=("val",), shared=shared
                )
                first, last = clock.records[0], clock.records[-1]
                if round_:
                    seconds[name].append((last[1] - first[1]) / (last[0] - first[0]))
    return {
        "model": config.model.name,
        "batch": config.data.batch_size,
        "steps": steps,
        "every_steps": every,
        "rounds": rounds,
        "steps_per_second": round(1 / statistics.median(seconds["saving"]), 2),
        "plain_steps_per_second": round(1 / statistics.median(seconds["plain"]), 2),
        "ratio": round(ratio(seconds["plain"], seconds["saving"]), 3),
        "ratio_is": f"steps/s with a checkpoint every {every} steps over those without, median over rounds",
    }


def evaluated_at_once(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` on generated images, with `_EVALUATED` validation images in one batch."""
    fraction = _EVALUATED / config.data.source.num_examples
    # A larger batch would be padded and computed at its full size.
    return changed(config, {"data.val_fraction": fraction, "eval.batch_size": _EVALUATED})
