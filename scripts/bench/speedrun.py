"""The CIFAR-10 speed record's config: seconds and accuracy of whole runs, over seeds.

The record's clock runs during whitening of the stem, training, and evaluation of test with six-view test-time
augmentation. It stops while data are read, programs compiled and progress evaluated.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path

import ml_collections

from linseed.scripts.bench.turns import in_turns
from linseed.trainer.data import stats
from linseed.trainer.experiment import Shared, build
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.step import data_init
from linseed.trainer.step.state import evaluated_weights
from linseed.trainer.train import train_and_evaluate

# airbench94_muon on one A100, from its page: mean seconds per run, mean test accuracy with six views.
RECORD_SECONDS, RECORD_ACCURACY = 2.59, 0.9401
AROUND_ROUNDS = 3


class _Span(Quiet):
    """Seconds from the dispatch of the first step to the last record."""

    def start(self, *, step, total_steps):
        self.began = time.perf_counter()

    def write(self, record):
        self.seconds = time.perf_counter() - self.began


def measure(*, config: ml_collections.ConfigDict, seeds: int, within: float = math.inf) -> dict:
    """Runs up to `seeds` seeds of the record's `config`; a first run with another seed compiles for all.

    within: makes another run only if it fits into so many seconds from now; one is always made. The first run counts if
    `seeds` is 0. Timed are the record's parts, and the evaluation of validation at the end of a run. Whitening: once
    for all seeds, on the host. Training: from the first step to the last record. Evaluating test with
    `config.eval.views`: once for all seeds, with the transfer of its images to the devices.
    """
    shared, training, cpu, accuracy = Shared(), [], [], []
    end, longest = time.monotonic() + within, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds + 1):
            began = time.monotonic()
            if training and began + longest > end:
                break
            config.seed, span, before = seed, _Span(), time.process_time()
            result = train_and_evaluate(
                config, Path(folder) / str(seed), writer=span, on_config_change="refuse", shared=shared
            )
            if seed or not seeds:
                longest = max(longest, time.monotonic() - began)
                training.append(span.seconds)
                cpu.append(time.process_time() - before)
                accuracy.append(result["test"]["accuracy"])
        around = _around(config, Path(folder) / "0", shared=shared)
    seconds = [value + sum(around.values()) for value in training]
    deviation = statistics.stdev if len(seconds) > 1 else lambda values: None
    return {
        "seeds": len(seconds),
        "views": config.eval.views,
        "seconds": [round(value, 3) for value in seconds],
        "training_seconds": [round(value, 3) for value in training],
        **{name: round(value, 3) for name, value in around.items()},
        "cpu_seconds": [round(value, 1) for value in cpu],
        "test_accuracy": [round(value, 4) for value in accuracy],
        "seconds_mean": round(statistics.mean(seconds), 3),
        "seconds_std": deviation(seconds),
        "test_accuracy_mean": round(statistics.mean(accuracy), 4),
        "test_accuracy_std": deviation(accuracy),
        "ratio": round(statistics.mean(seconds) / RECORD_SECONDS, 3),
        "ratio_is": "mean seconds of whitening, training, one evaluation of validation and the evaluation of test over "
        f"the record's published {RECORD_SECONDS} of whitening, training and test on an A100 ({RECORD_ACCURACY:.2%})",
    }


def _around(config, workdir, *, shared):
    """Seconds of the record's other parts besides training: medians of `AROUND_ROUNDS` calls after a first one."""
    experiment = build(config, workdir, shared=shared)
    test = experiment.test.open(by="bench", which="untrained", step=0)
    weights = experiment.parallel.replicate(evaluated_weights(experiment.state))
    section, cache = config.data, workdir / workdir_lib.STATISTICS
    found = stats.statistics(experiment.train, section.normalize, mean=section.mean, std=section.std, cache=cache)
    normalize = stats.make_normalize(found)

    def whiten():
        images = lambda count: data_init.spread(experiment.train.images, count=count, normalize=normalize)  # noqa: E731
        return data_init.make_data_init(**config.data_init, images=images)(experiment.state.params)

    calls = {"whitening_seconds": whiten, "test_seconds": lambda: experiment.evaluate.start(weights, test)}
    times = in_turns(calls, rounds=AROUND_ROUNDS)
    return {name: statistics.median(spent.wall) for name, spent in times.items()}
