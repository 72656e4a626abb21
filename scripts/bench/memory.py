"""Whether memory stays flat over epochs: the host's, workers included, and the devices', at the end of each epoch.

Runs `train_and_evaluate`, each in its own process: with images on the device, and with JPEG files decoded by two worker
processes or by threads. Reads `/proc`, so it needs Linux.
"""

import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

import jax
from absl import flags

from linseed.configs import cifar10_small
from linseed.scripts.bench.cases import synthetic
from linseed.scripts.bench.child import in_child
from linseed.scripts.bench.input import write_photographs
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import LinseedError
from linseed.trainer.run.console import Quiet
from linseed.trainer.train import train_and_evaluate

MIB = 2**20
BATCH = 32  # small, so whole batches make an epoch
FLAT = 0.005  # allowed growth per epoch, as a share of the peak
_ROLLUP = "smaps_rollup"


def _resident(root, *, images):
    config = synthetic(resolve(cifar10_small.get_config()), examples=images, image_size=32)
    config.data.placement, config.data.batch_size = "device", BATCH
    return config


def _stream(root, *, images, workers):
    write_photographs(Path(root), images)
    config = resolve(cifar10_small.get_config())
    config.model = dict(name="linear")
    config.data.source = dict(
        name="folder_stream",
        root=root,
        test_fraction=0.2,
        split_seed=0,
        image_size=96,
        resize=112,
        train_crop="random_resized_crop",
        on_bad_image="error",
        workers=workers,
    )
    config.data.batch_size, config.eval.batch_size = BATCH, BATCH
    config.optimizer.lr = 1e-4
    return config


# name -> (root, images) -> config: an empty folder for files, and how many images to make.
RUNS = {
    "resident": _resident,
    "stream_processes": functools.partial(_stream, workers=2),
    "stream_threads": functools.partial(_stream, workers=0),
}


def measure(*, epochs: int, images: int) -> dict:
    """epochs: per run, at least 4. images: per run, train and validation; the stream makes as many JPEG files.

    In MiB. host: of the process and its workers, shared memory counted once, without mapped files, which other programs
    share. rss, peak_rss: of the process alone. device: in use, or all live arrays if the backend does not report it.
    """
    if not Path(f"/proc/self/{_ROLLUP}").exists():
        raise LinseedError(f"this benchmark reads /proc/self/{_ROLLUP}, which only Linux has")
    if epochs < 4:
        raise LinseedError(f"--epochs={epochs:g} is too few to measure growth; give at least 4")
    runs = {name: in_child(_run, name, devices=1, epochs=epochs, images=images) for name in RUNS}
    for found in runs.values():
        found["growth_of_peak_per_epoch"] = {
            kind: round(growth(found[kind]), 5) for kind in ("host_mib", "rss_mib", "device_mib")
        }
        found["flat"] = max(found["growth_of_peak_per_epoch"].values()) < FLAT
    return {
        "epochs": epochs,
        "images": images,
        "runs": runs,
        "flat": all(found["flat"] for found in runs.values()),
        "ratio": round(max(later_over_earlier(found["host_mib"]) for found in runs.values()), 4),
        "ratio_is": "most host memory in the later half of the epochs over most in the earlier half, the worse run",
    }


def growth(values: list[float]) -> float:
    """The growth of `values` per step over their later half, as a share of the largest of all.

    The median slope of all pairs (Theil and Sen): one epoch that ends during a save does not decide.
    """
    later = list(enumerate(values))[len(values) // 2 :]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(later, 2)]
    return statistics.median(slopes) / max(values)


def later_over_earlier(values: list[float]) -> float:
    """The largest of the later half over the largest of the earlier half."""
    half = len(values) // 2
    return max(values[half:]) / max(values[:half])


class _Watch(Quiet):
    """Notes the memory at the end of each epoch, which evaluates; the next epoch is then running."""

    def __init__(self):
        self.found = []

    def write(self, record):
        if "val_accuracy" in record:
            self.found.append(memory())


def memory() -> dict[str, float]:
    """Memory of this process, its children and the first device, in MiB; see `measure`. workers: their number."""
    children = multiprocessing.active_children()
    processes = [os.getpid(), *(child.pid for child in children)]
    host = sum(_kib(f"/proc/{pid}/{_ROLLUP}", kind) for pid in processes for kind in ("Anonymous", "Pss_Shmem"))
    stats = jax.devices()[0].memory_stats()
    device = stats["bytes_in_use"] if stats else sum(array.nbytes for array in jax.live_arrays())
    return {
        "host_mib": round(host / 1024, 1),
        "rss_mib": round(_kib("/proc/self/status", "VmRSS") / 1024, 1),
        "peak_rss_mib": round(_kib("/proc/self/status", "VmHWM") / 1024, 1),
        "device_mib": round(device / MIB, 2),
        "peak_device_mib": round(stats["peak_bytes_in_use"] / MIB, 2) if stats else None,
        "workers": len(children),
    }


def _kib(path, prefix):
    """The sum of a file's lines `NAME: N kB` whose name begins with `prefix`; 0 for a process that has ended."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def _run(name, *, epochs, images):
    flags.FLAGS.mark_as_parsed()  # Grain reads them when it starts workers
    watch = _Watch()
    with tempfile.TemporaryDirectory(prefix="linseed-memory-") as folder:
        config = RUNS[name](f"{folder}/data", images=images)
        config.horizon.epochs = float(epochs)
        config.eval.every_epochs = 1.0
        train_and_evaluate(config, Path(folder) / "run", writer=watch, on_config_change="refuse", judge=("val",))
    return {kind: [found[kind] for found in watch.found] for kind in watch.found[0]}
