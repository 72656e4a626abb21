"""What starts a run on many machines: it parses, and says only what the train command understands."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "scripts" / "launch"
FILES = sorted(LAUNCH.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_flags_are_those_of_the_train_command(path):
    (command,) = re.findall(r"-m scripts\.train((?:[^\n]|\\\n|\n +--)*)", path.read_text())
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "scripts" / "train.py").read_text()))
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


def test_a_status_that_another_try_may_mend_is_tried_again_and_a_users_error_is_not():
    from trainer.errors import LostError

    assert f" {LostError.status} |" in (LAUNCH / "slurm.sbatch").read_text()
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (fails, _) = job["spec"]["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"]["values"] == [2]


def test_skypilot_runs_a_process_on_each_node():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] > 1
    assert "$SKYPILOT_NUM_NODES" in task["run"]
    assert "--workdir=" + next(iter(task["file_mounts"])) in task["run"]
