"""The doctor as a user meets it: tables that read when piped, one line for what is wrong, the workdir untouched."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from support import forked
from support.commands import command, refusal

from linseed.trainer.optim.schedules import make_schedule

TINY = [
    "--config=configs/digits.py:quick",
    "--config.convolution=xla",
    "--config.model.widths=(4,)",
    "--config.optimizer.rules=('head/.*: lr=0.5', 'block1/norm/[a-z]+: frozen', 'rest:')",
    "--steps=2",
]


def rows(text):
    """The cells of each row of every table in `text`."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_a_forecast_reads_when_piped_and_draws_the_schedule(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    arguments = [f"--workdir={run}", f"--out={tmp_path / 'out'}", "--config.checkpoint.keep_latest=1000000000"]
    done = command("doctor", *TINY, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line.startswith(("│", "┏"))), done.stdout
    for title in ("parameters", "steps", "compute and memory", "time", "checkpoints on disk", "learning rate"):
        assert title in done.stdout, done.stdout
    cells = rows(done.stdout)

    # 4 filters of 3x3x1, their norm, and a head of 4x10 + 10.
    assert ["total", "94", ""] in cells
    assert ["block1/norm/scale", "4", "block1/norm/[a-z]+", "0", "0", "frozen"] in cells
    assert ["head/kernel", "4x10", "head/.*", "0.5", "1", ""] in cells
    assert ["head/bias", "10", "head/.*", "0.5", "0", ""] in cells

    # 1,295 training digits in batches of 32, two epochs, half an epoch of warm-up.
    assert ["warm-up", "20", "24.7% of the run"] in cells
    schedule = make_schedule("cosine", lr=3e-3, warmup_steps=20, total_steps=81)
    drawn = {int(cell[0]): float(cell[2]) for cell in cells if len(cell) == 4 and cell[0].isdigit()}
    assert {0, 20, 80} <= drawn.keys()
    assert all(lr == pytest.approx(float(schedule(step)), rel=0.01, abs=1e-9) for step, lr in drawn.items())
    ElementTree.parse(tmp_path / "out" / "schedule.svg")
    assert not list(run.iterdir())
    assert "no largest batch" in done.stdout and "--memory=8GiB" in done.stdout  # a CPU reports no limit


def test_the_largest_batch_for_so_much_memory_divides_over_the_devices_and_fits():
    done = command("doctor", *TINY, "--config.convolution=auto", "--memory=1MiB")
    assert done.returncode == 0, done.stderr
    found = {cell[0]: cell[1:] for cell in rows(done.stdout) if len(cell) == 3}
    batch, per_device = int(found["largest batch"][0].replace(",", "")), int(found["largest batch"][1].split()[0])
    assert batch == 4 * per_device > 32  # conftest's four devices; one step of 32 needs far less
    size, unit = found["device: a run with it"][0].split()
    assert unit == "MB" and 0.8 < float(size) <= 1.1 and "of 1.0 MB" in found["device: a run with it"][1]


def test_a_disk_that_is_too_small_and_another_config_are_warned_of(tmp_path):
    config = tmp_path / "run" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model": {}, "optimizer": {}}))
    script = (
        "import collections, shutil, sys\n"
        "shutil.disk_usage = lambda path: collections.namedtuple('usage', 'free')(1000)\n"
        "import runpy\n"
        "runpy.run_module('scripts.doctor', run_name='__main__', alter_sys=True)\n"
    )
    done = forked.run(["-c", script, *TINY, f"--workdir={config.parent}"])
    assert done.returncode == 0, done.stderr
    assert "warning: checkpoints need" in done.stdout and "the disk of" in done.stdout
    assert "holds a run of another config" in done.stdout and "; ...)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--config is missing; the command is python -m scripts.doctor --config=CONFIG"),
        (["--config=configs/digits.py", "--steps=0"], "steps"),
        (["--config=configs/digits.py", "--memory=8Gig"], "--memory=8Gig should be bytes above 0, such as 8GiB"),
        (["--config=configs/digits.py", "--config.optimizer.rules=('rets:',)"], "add 'rest:' for all others"),
        (["--config=configs/digits.py", "--workdir=setup.cfg"], "--workdir=setup.cfg is a file; choose a folder"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, says):
    assert says in refusal("doctor", *arguments)
