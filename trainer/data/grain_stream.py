"""The training stream of data larger than memory: batches as a pure function of (seed, step), prefetched by Grain.

A batch consists of pieces. Grain decodes pieces in threads of this process or in worker processes. Piece k depends only
on k, so the stream is the same for any number of workers or hosts and any start.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker

import numpy as np

from linseed.trainer.data.batching import places
from linseed.trainer.data.lazy import quiet_pillow
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import ConfigError, DataError
from linseed.trainer.runtime import signals
from linseed.trainer.runtime.machine import cores

# Most examples in a piece, the unit that a worker decodes and hands over. Small pieces bound memory, a few per worker,
# and spread the first batch over several workers.
PIECE = 32

_ENDLESS = 2**60  # pieces


class Stream:
    """Endless training batches of `split`, whose images are lazy.

    seed, batch_size: as for `batching.places`. workers: processes that decode, 0 for threads in this one. shard_index,
    shard_count: host h of k gets rows [h B / k, (h + 1) B / k) of each batch of B.
    """

    def __init__(
        self, split: Split, *, seed: int, batch_size: int, workers: int, shard_index: int = 0, shard_count: int = 1
    ):
        if batch_size % shard_count:
            raise ConfigError(f"config.data.batch_size={batch_size} does not divide over {shard_count} hosts")
        share = batch_size // shard_count
        self._split, self._workers = split, workers
        self._pieces = _Pieces(split, seed=seed, batch_size=batch_size, first_row=shard_index * share, share=share)

    def batches(self, start_step: int) -> Generator[dict[str, np.ndarray]]:
        """Host batches of steps `start_step`, `start_step` + 1, ... Close it to end the workers.

        image uint8 [B, H, W, C], label int32 [B], mask float32 [B] (all ones), index int32 [B] into the split, epoch
        int32 [B]; B is this host's share. Raises DataError, one line, for a bad image unless bad ones are skipped, and
        if a worker dies. Worker processes import the main module again, so it needs a guard `__name__`. Grain reads
        absl's flags, so a program that is no absl app calls `absl.flags.FLAGS.mark_as_parsed()` first.
        """
        import grain  # slow to import, and not needed for data in memory

        count = self._pieces.per_batch
        pieces = grain.MapDataset.source(self._pieces)[start_step * count :]
        # With a second thread a worker decodes while it waits for the disk.
        threads = 2 if self._workers else cores()
        pieces = pieces.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        if self._workers:
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            pieces = pieces.mp_prefetch(options, worker_init_fn=_start_worker)
        quiet_pillow()
        with contextlib.closing(iter(pieces)) as iterator:
            with _stops_held_back() if self._workers else contextlib.nullcontext():
                waiting = [self._next(iterator)]  # by then all workers have started
            while True:
                yield self._join([waiting.pop() if waiting else self._next(iterator) for _ in range(count)])

    def _next(self, iterator):
        try:
            return next(iterator)
        except RuntimeError as error:
            if not self._workers:
                raise
            # Grain's error for a worker that died.
            raise DataError(
                f"an image decoding process died ({' '.join(str(error).split())[:80]}); it was killed, or"
                " memory or /dev/shm was full: lower config.data.source.workers or config.data.batch_size, or set"
                " workers=0"
            ) from error

    def _join(self, pieces):
        for piece in pieces:
            self._split.images.report(piece.pop("bad"))
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


class _Pieces:
    """Piece k of the stream at index k, for `grain.MapDataset.source`; pickled for the workers."""

    def __init__(self, split, *, seed, batch_size, first_row, share):
        self._images, self._labels = split.images, split.labels
        self._seed, self._batch_size, self._first_row, self._share = seed, batch_size, first_row, share
        self.per_batch = -(-share // PIECE)

    def __len__(self):
        return _ENDLESS

    def __getitem__(self, piece):
        step, within = divmod(int(piece), self.per_batch)
        start = self._first_row + within * PIECE
        rows = np.arange(start, min(start + PIECE, self._first_row + self._share))
        place = step * self._batch_size + rows
        examples = len(self._labels)
        batch = places(step, seed=self._seed, num_examples=examples, batch_size=self._batch_size)
        index = batch["index"][rows]
        images, bad = np.empty((len(rows), *self._images.shape[1:]), np.uint8), {}
        for i in range(len(rows)):
            images[i], index[i], bad_here = self._images.train_image(
                int(index[i]), seed=self._seed, place=int(place[i])
            )
            bad |= bad_here
        return {
            "image": images,
            "label": self._labels[index],
            "mask": np.ones(len(rows), np.float32),
            "index": index,
            "epoch": batch["epoch"][rows],
            "bad": bad,
        }


def _start_worker(worker, workers):
    quiet_pillow()
    # Only the main process obeys a signal to the process group, such as Ctrl-C: it saves, then ends the workers.
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()


def _end_with_the_parent():
    """Ends this worker with the main process; Grain's workers would wait forever for one that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _stops_held_back() -> Iterator[None]:
    """Blocks `signals.SIGNALS` in processes and threads that this thread starts, from their first moment.

    A worker imports for a second before `_start_worker` is called. Other threads of this process still get the signals.
    """
    resource_tracker.ensure_running()  # starting it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
