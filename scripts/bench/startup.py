"""How long a user waits: from the start of the command to the end of the first training step.

The command is `python -m scripts.train`, each time in a new process: with an empty compilation cache (cold), and with
the programs of the previous run (warm). The first step has ended when metrics.jsonl holds its record; the process is
then killed.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_collections

from linseed.configs import cifar10_resnet20, digits
from linseed.scripts.bench.cases import synthetic
from linseed.scripts.bench.turns import Times, ratio
from linseed.trainer.config import canonical
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import LinseedError
from linseed.trainer.run import workdir as workdir_lib

POLL_SECONDS = 0.005


def _resnet20(convolution="auto"):
    config = synthetic(resolve(cifar10_resnet20.get_config()), examples=2560, image_size=32)
    config.convolution = convolution
    return config


# Programs that call oneDNN, the default on CPU, cannot be cached; XLA's can.
CONFIGS = {
    "digits": digits.get_config,
    "resnet20": _resnet20,
    "resnet20_xla": functools.partial(_resnet20, convolution="xla"),
}
BAR = "resnet20"  # with its own config


def measure(*, rounds: int) -> dict:
    """Seconds of each config, cold and then warm, in each of `rounds` rounds."""
    found = {name: {"cold": Times([], []), "warm": Times([], [])} for name in CONFIGS}
    subprocess.run([sys.executable, "-c", "import linseed.trainer.train"], check=True)  # reads the files from disk once
    for _ in range(rounds):
        for name, make in CONFIGS.items():
            with tempfile.TemporaryDirectory(prefix="linseed-startup-") as folder:
                for way, times in found[name].items():
                    wall, cpu = first_step(make(), Path(folder) / way)
                    times.wall.append(wall)
                    times.cpu.append(cpu)
    figures = {}
    for name, ways in found.items():
        figures[name] = {
            "seconds": {way: round(statistics.median(times.wall), 2) for way, times in ways.items()},
            "cpu_seconds": {way: round(statistics.median(times.cpu), 2) for way, times in ways.items()},
            "ratio": round(ratio(ways["warm"].wall, ways["cold"].wall), 4),
            "cpu_ratio": round(ratio(ways["warm"].cpu, ways["cold"].cpu), 4),
        }
    return {
        "configs": figures,
        "rounds": rounds,
        "ratio": figures[BAR]["ratio"],
        "ratio_is": f"{BAR}: seconds to the end of the first step with a warm cache over seconds with a cold one",
    }


def first_step(config: ml_collections.ConfigDict, workdir: Path) -> tuple[float, float]:
    """Seconds until `config` has done a step in the new folder `workdir`: on the clock, and of the process.

    The cache is next to `workdir`. Raises LinseedError if the command ends before the step.
    """
    config.log_every_steps = 1
    given = workdir.with_suffix(".json")
    given.write_text(canonical.to_json(config), encoding="utf-8")
    command = [sys.executable, "-m", "scripts.train", f"--config=configs/replay.py:{given}", f"--workdir={workdir}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = workdir / workdir_lib.METRICS
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise LinseedError(f"the run ended before its first step: {process.stderr.read().strip()}")
            time.sleep(POLL_SECONDS)
        wall = time.perf_counter() - began
    finally:
        process.kill()
        process.stderr.close()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # `wait4` above has waited; it also returns the usage
    return wall, usage.ru_utime + usage.ru_stime
