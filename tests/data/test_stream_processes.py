"""The processes that decode: deaf to what asks the run to stop, and gone when the main process is, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

CONFIG = """
from linseed.configs import digits

def get_config():
    config = digits.get_config("quick")
    config.data.source = dict(name="folder_stream", root={root!r}, image_size=8, resize=8, workers=1)
    config.data.batch_size = 8
    config.data.augment = ""
    config.model.widths = (4,)
    config.convolution = "xla"
    config.horizon.epochs = 100_000.0
    config.eval.every_epochs = 1000.0
    config.log_every_steps = 1
    return config
"""


@pytest.fixture
def process(tmp_path):
    """A run without end, in a process group of its own, that has logged its first step, and its workdir."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "config.py").write_text(CONFIG.format(root=str(tmp_path / "images")))
    command = [sys.executable, "-m", "scripts.train", f"--config={tmp_path / 'config.py'}"]
    # What a shell starts in the background is to ignore SIGINT, and so is all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    signal.signal(signal.SIGINT, before)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or log.exists() and log.stat().st_size, seconds=120)
    assert process.poll() is None, (tmp_path / "stderr").read_text()
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def wait_until(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def decoders(parent):
    """The processes below `parent` that decode."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:  # gone meanwhile
            continue
        if b"spawn_main" in command and int(status.rpartition(")")[2].split()[1]) == parent:
            found.append(int(folder.name))
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux's")
def test_a_signal_to_all_processes_of_a_run_saves_the_step_and_ends_them(process, tmp_path):
    workers = decoders(process.pid)
    assert len(workers) == 1
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    error = (tmp_path / "stderr").read_text()
    assert process.returncode == 130, error
    (step,) = [int(word) for word in error.splitlines()[-1].replace(",", "").split() if word.isdigit()]
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir(), error
    assert not any(map(is_running, workers))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux's")
def test_workers_end_with_a_main_process_that_was_killed(process):
    workers = decoders(process.pid)
    assert len(workers) == 1 and all(map(is_running, workers))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_running, workers)), seconds=10)


def test_workers_are_deaf_before_they_have_started(tmp_path):
    """From the mask that they inherit: a signal while they import would end them."""
    code = """
import subprocess, sys
from linseed.trainer.data.grain_stream import _stops_held_back
from linseed.trainer.config.resolve import resolve
child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"]
with _stops_held_back():
    print(subprocess.run(child, capture_output=True, text=True).stdout.strip())
print(subprocess.run(child, capture_output=True, text=True).returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["alive", "-15"], done.stderr
