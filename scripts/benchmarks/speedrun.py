"""The CIFAR-10 speed record's config: seconds of training and accuracy, over seeds, each a whole run."""

import statistics
import tempfile
import time
from pathlib import Path

import ml_collections

from trainer.experiment import Shared
from trainer.train import train_and_evaluate
from trainer.writers import Quiet

# airbench94_muon on one A100, of its own page: mean seconds of a run, mean test accuracy with its six views.
RECORD_SECONDS, RECORD_ACCURACY = 2.59, 0.9401


class _Span(Quiet):
    """From the first step's dispatch to the last record."""

    def start(self, *, step, total_steps):
        self.began = time.perf_counter()

    def write(self, record):
        self.seconds = time.perf_counter() - self.began


def measure(*, config: ml_collections.ConfigDict, seeds: int) -> dict:
    """config: of the record. A first run, of another seed, compiles for all and is not counted.

    Seconds are those of training: from the first step to the end of the only evaluation of validation, without reading
    the data and judging test.
    """
    shared, seconds, cpu, accuracy = Shared(), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds + 1):
            config.seed, span, before = seed, _Span(), time.process_time()
            result = train_and_evaluate(
                config, Path(folder) / str(seed), writer=span, on_config_change="refuse", shared=shared
            )
            if seed or not seeds:
                seconds.append(span.seconds)
                cpu.append(time.process_time() - before)
                accuracy.append(result["test"]["accuracy"])
    deviation = statistics.stdev if len(seconds) > 1 else lambda values: None
    return {
        "seeds": seeds,
        "views": config.eval.views,
        "seconds": [round(value, 3) for value in seconds],
        "cpu_seconds": [round(value, 1) for value in cpu],
        "test_accuracy": [round(value, 4) for value in accuracy],
        "seconds_mean": round(statistics.mean(seconds), 3),
        "seconds_std": deviation(seconds),
        "test_accuracy_mean": round(statistics.mean(accuracy), 4),
        "test_accuracy_std": deviation(accuracy),
        "ratio": round(statistics.mean(seconds) / RECORD_SECONDS, 3),
        "ratio_is": f"mean seconds over the record's published {RECORD_SECONDS} on an A100 ({RECORD_ACCURACY:.2%})",
    }
