"""Exact evaluation: every example counts once, whatever the batch size or the number of devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from linseed.trainer.data import batching
from linseed.trainer.data.splits import Split
from linseed.trainer.runtime.data_parallel import DataParallel
from linseed.trainer.step.scores import scores


class Evaluator:
    """Evaluates weights on splits. eval_step: compiled by `parallel`, (weights, batch) -> (sums, examples).

    resident: a split whose batches stay on the devices after their first use, or None.
    """

    def __init__(self, eval_step: Callable, *, batch_size: int, parallel: DataParallel, resident: Split | None):
        self._eval_step, self._batch_size, self._parallel = eval_step, batch_size, parallel
        self._resident, self._on_device = resident, []

    def __call__(self, weights, split: Split) -> dict[str, Any]:
        """The `scores.scores` of `weights`, replicated over the devices, on `split`."""
        return scores(jax.device_get(self.start(weights, split)))

    def start(self, weights, split: Split) -> list[dict[str, Any]]:
        """The sums of every batch, for `scores.scores`, on the device and possibly still being computed."""
        return [self._eval_step(weights, batch)[0] for batch in self._batches(split)]

    def one_by_one(self, weights, split: Split) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """For each batch, in the order of the split, its sums and its examples, host arrays: see `make_eval_step`."""
        before = None
        for batch in self._batches(split):
            found = self._eval_step(weights, batch)
            if before is not None:  # fetched while the devices are at the next one
                yield jax.device_get(before)
            before = found
        yield jax.device_get(before)

    def _batches(self, split):
        parallel = self._parallel
        mine = {"shard_index": parallel.shard_index, "shard_count": parallel.shard_count}
        batches = map(parallel.shard, batching.eval_batches(split, batch_size=self._batch_size, **mine))
        if split is not self._resident:
            return batches
        self._on_device = self._on_device or list(batches)
        return self._on_device
