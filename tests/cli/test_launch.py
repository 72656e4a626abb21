"""What starts a run on many machines: it parses, and says only what the train command understands."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from linseed.trainer.errors import LinseedError, LostError
from linseed.trainer.runtime import signals

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
FILES = sorted(LAUNCH.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_flags_are_those_of_the_train_command(path):
    (command,) = re.findall(r"-m scripts\.train((?:[^\n]|\\\n|\n +--)*)", path.read_text())
    sources = [ROOT / "scripts" / "train.py", *(ROOT / "scripts" / "cli").glob("*.py")]
    known = set(re.findall(r'(?:DEFINE_\w+|define_path)\(\s*"(\w+)"', "".join(path.read_text() for path in sources)))
    flags = re.findall(r"--(\w+)=", command)
    assert {"config", "workdir"} <= set(flags) <= known
    assert len(set(flags) & {"coordinator", "num_processes", "process_id"}) in (0, 3)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_kubernetes_job_starts_as_many_processes_as_it_tells_them_and_they_find_each_other():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    (env,) = container["env"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(env["value"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # else Kubernetes refuses a podFailurePolicy
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator={name}-0.{pod['subdomain']}:{port}" in container["args"][0]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def on_slurm(folder, *, status, restarts):
    """What slurm.sbatch calls, line by line, where srun ends with `status` in a job restarted so often."""
    calls = folder / "calls"
    for name, ends in (("srun", status), ("scontrol", 0)):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\nexit {ends}\n')
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    if restarts:
        env["SLURM_RESTART_COUNT"] = str(restarts)
    command = ["bash", LAUNCH / "slurm.sbatch", "CONFIG", "WORKDIR"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    return calls.read_text().splitlines()


# 0, 1: done, the watchdog. SIGTERM is what scancel sends.
@pytest.mark.parametrize("status", [0, 1, LinseedError.status, 128 + signal.SIGTERM])
def test_slurm_does_not_start_again_what_is_done_or_wrong_or_cancelled(tmp_path, status):
    (ran,) = on_slurm(tmp_path, status=status, restarts=0)
    assert " --cpus-per-task=8 " in ran
    assert " --kill-on-bad-exit=0 " in ran  # else the slower to leave end by SIGTERM, and srun's status is 143


AGAIN = [LostError.status, 128 + signal.SIGKILL, 128 + signal.SIGUSR1]


@pytest.mark.parametrize("status", AGAIN)
def test_slurm_starts_again_what_another_try_may_mend_so_and_so_often(tmp_path, status):
    for restarts in (0, 1, 19):
        assert on_slurm(tmp_path, status=status, restarts=restarts)[-1] == "scontrol requeue 7"
        (tmp_path / "calls").unlink()
    (ran,) = on_slurm(tmp_path, status=status, restarts=20)
    assert ran.startswith("srun ")


def test_the_signal_that_slurm_sends_before_the_time_is_up_is_one_that_it_starts_again_after():
    (name,) = re.findall(r"^#SBATCH --signal=(\w+)@\d+$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert signal.Signals[f"SIG{name}"] in signals.SIGNALS
    assert 128 + signal.Signals[f"SIG{name}"] in AGAIN


def test_a_users_error_fails_the_kubernetes_job():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (fails, _) = job["spec"]["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"]["values"] == [LinseedError.status]


def test_skypilot_runs_a_process_on_each_node():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] > 1
    assert "$SKYPILOT_NUM_NODES" in task["run"]
    assert "--workdir=" + next(iter(task["file_mounts"])) in task["run"]
