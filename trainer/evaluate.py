"""Exact evaluation: every example counts once, whatever the batch size or the number of devices."""

from collections.abc import Callable

import jax

from trainer import metrics
from trainer.data import pipeline
from trainer.data.splits import Split
from trainer.parallel import DataParallel


def evaluate(
    weights, split: Split, *, eval_step: Callable, batch_size: int, parallel: DataParallel
) -> dict[str, float]:
    """`loss` (nats), `accuracy` (0..1) and `examples` of `weights` on `split`.

    weights: replicated over the devices. eval_step: compiled by `parallel`, (weights, batch) -> sums.
    The sums stay on the device until the last batch is under way.
    """
    batches = pipeline.eval_batches(split, batch_size=batch_size)
    sums = [eval_step(weights, parallel.shard(batch)) for batch in batches]
    return metrics.means(jax.device_get(sums))
