"""Two real processes over this machine's own network: they are one run, whoever dies and however many come back."""

import contextlib
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from support.processes import WAIT, ended, free_port, started

from linseed.trainer.data import batching
from linseed.trainer.data import placement as feeds
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import LostError

TRAIN = ["-m", "scripts.train"]
# Before step 60, when process 0 has begun to save step 40: no process is more than a few calls ahead.
DYING = ["-m", "scripts.faults.faulty", "killed", "60"]
DIGITS = [
    "--config=configs/digits.py:quick",
    "--config.model.widths=(4,4)",
    "--config.convolution=xla",
    "--config.log_every_steps=20",
]


def begun(*programs, workdir):
    """Trains in two processes of one device each; process 1 with a workdir of its own, as on another machine."""
    port = free_port()
    several = [f"--coordinator=localhost:{port}", "--num_processes=2", "--heartbeat_seconds=5", "--start_seconds=60"]
    folders = [workdir, workdir.parent / "elsewhere"]
    return [
        started([*program, *DIGITS, *several, f"--process_id={i}", f"--workdir={folder}"], devices=1)
        for i, (program, folder) in enumerate(zip(programs, folders, strict=True))
    ]


def pair(*programs, workdir):
    return ended(begun(*programs, workdir=workdir))


def alone(workdir):
    return ended([started([*TRAIN, *DIGITS, f"--workdir={workdir}"], devices=2)])[0]


def sha256_of_parameters(workdir):
    return json.loads((workdir / "result.json").read_text())["params_sha256"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The parameters of one process with two devices."""
    workdir = tmp_path_factory.mktemp("straight")
    status, said = alone(workdir)
    assert status == 0, said
    return sha256_of_parameters(workdir)


def test_a_lost_process_ends_the_other_and_two_or_one_go_on_to_the_parameters_of_one_machine(straight, tmp_path):
    (lost, said), (killed, dying) = pair(TRAIN, DYING, workdir=tmp_path / "run")
    assert killed == -9, dying
    assert lost == LostError.status, said
    assert "error: " in said.splitlines()[-1]
    assert "run the same command on every machine again" in said.splitlines()[-1]

    shutil.copytree(tmp_path / "run", tmp_path / "fewer")
    for status, said in pair(TRAIN, TRAIN, workdir=tmp_path / "run"):
        assert status == 0, said
    status, said = alone(tmp_path / "fewer")
    assert status == 0, said
    assert "resuming after step 40" in said

    assert sha256_of_parameters(tmp_path / "run") == sha256_of_parameters(tmp_path / "fewer") == straight
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [20, 40, 60, 80, 81]
    assert not list((tmp_path / "elsewhere").rglob("*.json*"))  # process 0 alone writes


def test_a_signal_to_one_process_stops_both_after_the_same_step_from_which_they_go_on(straight, tmp_path):
    workdir = tmp_path / "run"
    processes = begun(TRAIN, TRAIN, workdir=workdir)
    latest = time.monotonic() + WAIT
    while not (workdir / "config.json").exists() and time.monotonic() < latest:  # both are about to compile
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)  # not to the writer
    found = ended(processes)
    for status, said in found:
        assert status == 128 + signal.SIGTERM, said
    steps = [re.search("stopped by SIGTERM after step ([0-9]+), which is saved", said)[1] for _, said in found]
    step = steps[0]
    assert steps == [step, step]
    assert 0 < int(step) < 81
    assert step in {path.name for path in (workdir / "checkpoints").iterdir()}

    (status, said), (other, others_words) = pair(TRAIN, TRAIN, workdir=workdir)
    assert (status, other) == (0, 0), said + others_words
    assert f"resuming after step {step}" in said
    assert sha256_of_parameters(workdir) == straight


AGREEING = """
import json, sys
from types import SimpleNamespace
import numpy as np
from linseed.trainer import resume
from linseed.trainer.runtime import join, processes
from linseed.trainer.run.checkpoint import NoCheckpoints
from linseed.trainer.errors import ConfigError, DistributedError
from linseed.trainer.step.state import TrainState
from linseed.trainer.run.console import Quiet

index = int(sys.argv[2])
def refuse():
    raise ConfigError("no")

told = {}
with join.joined(
    sys.argv[1], num_processes=2, process_id=index, start_seconds=60, heartbeat_seconds=5
):
    try:
        processes.from_writer(refuse)
    except ConfigError as error:
        told["error"] = str(error)
    told["value"] = processes.from_writer(lambda: index)
    like = {"x": np.zeros(3, np.float32), "n": np.int32(0)}
    arrays = {"x": np.array([-0.0, np.nan, 1e-40], np.float32), "n": np.int32(-7)}
    restored, about = processes.restored_by_writer(lambda like: (arrays, {"step": 3}), like=like)
    told["restored"] = [restored["x"].tobytes().hex(), int(restored["n"]), about]
    params = {"kernel": np.full(2, 3.0 + index, np.float32)}  # of another processor, say
    new = TrainState(np.int32(0), params, {}, {}, np.zeros(2, np.uint32), {})
    test = SimpleNamespace(fingerprint="")
    experiment = SimpleNamespace(
        state=new, begin=lambda say: new, parallel=SimpleNamespace(num_devices=2),
        fingerprint="", hyperparams={}, judged_by="", batch_size=1,
        monitor="accuracy",
        test=test,
    )
    experiment.hyperparams |= {"lr": 0.1, "weight_decay": 0.0}
    rollbacks = SimpleNamespace(lr_scale=lambda step: 1.0)
    state, _ = resume.restore(experiment, NoCheckpoints(), rollbacks=rollbacks, writer=Quiet())
    told["new"] = state.params["kernel"].tolist()
    told["none"] = processes.restored_by_writer(lambda like: None, like=like)
    try:
        processes.agreed(lambda: index, facts=lambda index: {"data": "same", "config": index})
    except DistributedError as error:
        told["differs"] = str(error)
    calls = 0
    stop = processes.AgreedStop(lambda: 12 if index == 1 and calls >= 9 else 0, ahead=2, poll_seconds=0.02)
    while not (number := stop()):
        calls += 1
        processes.barrier(f"call {calls}", timeout_seconds=60)  # what the devices' collectives are to a run
    told["stop"] = [calls, number]
    told["last"] = processes.AgreedStop(lambda: 15 * index, ahead=2).last()
print(json.dumps(told))
"""


def test_what_the_writer_knows_all_know_and_a_stop_that_one_asks_for_all_make_after_the_same_step():
    port = free_port()
    found = ended([started(["-c", AGREEING, f"localhost:{port}", str(i)], devices=1) for i in range(2)])
    for status, said in found:
        assert status == 0, said
    first, second = (json.loads(said.splitlines()[-1]) for _, said in found)
    assert first["error"] == "no"
    assert second["error"] == "process 0: no"
    assert first["value"] == second["value"] == 0
    bits = np.array([-0.0, np.nan, 1e-40], np.float32).tobytes().hex()
    assert first["restored"] == second["restored"] == [bits, -7, {"step": 3}]
    assert first["new"] == second["new"] == [3.0, 3.0]
    assert first["none"] is second["none"] is None
    assert first["differs"] == second["differs"]
    assert first["differs"].startswith("process 1 has another config than process 0: 1 instead of 0; start all with")
    assert first["stop"] == second["stop"]
    assert first["stop"][0] >= 9
    assert first["stop"][1] == 12
    assert first["last"] == second["last"] == 15


def photos(home, *, test):
    """Two classes of three images for train, and as many for test as `test` says of each."""
    for split, counts in {"train": {"cat": 3, "dog": 3}, "test": test}.items():
        for name, count in counts.items():
            folder = home / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")


IN_A_HOME = """
import os, runpy, sys
os.environ["HOME"] = sys.argv.pop(1)
runpy.run_module("scripts.train", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("flags", "test", "differs"),
    [
        (["--config.loss.name=svm"], {"cat": 2, "dog": 1}, 'config.loss.name than process 0: "svm" instead of'),
        (["--judge=val"], {"cat": 2, "dog": 1}, "--judge than process 0"),
        ([], {"cat": 1, "dog": 2}, "test split (names, sizes, labels) than process 0"),
        ([], {"cat": 2}, "test split (names, sizes, labels) than process 0"),
    ],
)
def test_processes_that_differ_all_end_with_status_2_and_the_line_that_differs(tmp_path, flags, test, differs):
    for index, counts in enumerate([{"cat": 2, "dog": 1}, test]):
        photos(tmp_path / str(index), test=counts)
    source = ["--config.data.source.name=folder", "--config.data.source.root=~/photos", "--config.eval.batch_size=2"]
    programs = [["-c", IN_A_HOME, tmp_path / str(index), *source, *more] for index, more in enumerate([[], flags])]
    lines = set()
    for status, said in pair(*programs, workdir=tmp_path / "run"):
        assert status == 2, said
        lines.add(said.splitlines()[-1])
    (line,) = lines
    assert f"error: process 1 has another {differs}" in line


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_shares_of_all_hosts_are_the_batch_of_one(hosts, placement):
    split = Split(np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), np.arange(50, dtype=np.int32))
    settings = {"val": split, "placement": placement, "seed": 3, "batch_size": 8, "multiple": 4}

    def batch(step, **share):
        with contextlib.closing(feeds.make_feed(split, **settings, **share).batches(step)) as batches:
            return next(batches)

    def joined(shares):
        return jax.tree.map(lambda *parts: np.concatenate(parts), *shares)

    shares = [{"shard_index": index, "shard_count": hosts} for index in range(hosts)]
    for step in (0, 5, 6, 7):
        jax.tree.map(np.testing.assert_array_equal, joined([batch(step, **share) for share in shares]), batch(step))
    whole = list(batching.eval_batches(split, batch_size=16))
    parts = [list(batching.eval_batches(split, batch_size=16, **share)) for share in shares]
    for expected, *of_hosts in zip(whole, *parts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, joined(of_hosts), expected)
