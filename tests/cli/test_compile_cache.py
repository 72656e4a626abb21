"""What a run compiled the next one loads, with the same bits; and nothing that is wrong with the folder stops a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import forked

from linseed.scripts.cli.compile_cache import NAME, _unusable, prune

ROOT = Path(__file__).parents[2]
TINY = [
    "--config=configs/digits.py:quick",
    "--config.model.name=linear",
    "--config.data.augment=",
    "--config.horizon.epochs=0.5",
    "--config.schedule.warmup_epochs=0.1",
    "--config.eval.every_epochs=0.25",
]
# The command without the cache of these tests, and then how many programs it asked for and how many it found.
COUNTED = """
import collections, json, runpy, sys
import jax
jax.config.update("jax_compilation_cache_dir", None)
asked = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: asked.update([name.rpartition("/")[2]]))
sys.argv[0] = "train"
try:
    runpy.run_module("scripts.train", run_name="__main__", alter_sys=True)
finally:
    print(json.dumps([asked["compile_requests_use_cache"], asked["cache_hits"]]))
"""


def train(workdir, *arguments):
    """(result.json, programs asked for, programs found, stderr) of the command."""
    done = forked.run(["-c", COUNTED, *TINY, f"--workdir={workdir}", *arguments])
    assert done.returncode == 0, done.stderr
    asked, found = json.loads(done.stdout.splitlines()[-1])
    return json.loads((workdir / "result.json").read_text()), asked, found, done.stderr


def test_the_second_run_loads_every_program_and_ends_with_the_same_bits(tmp_path):
    """The train step gives up its state's buffers: a program loaded from the disk does so as well."""
    (tmp_path / "file").write_text("")
    fresh, _, found, said = train(tmp_path / "alone", f"--compile_cache={tmp_path / 'file' / 'cache'}")
    assert found == 0 and not (tmp_path / NAME).exists()
    assert len(said.splitlines()) == 1 and said.startswith("warning: ") and "is a file" in said

    cold, asked, found, said = train(tmp_path / "cold")
    assert found < asked and said == ""
    warm, asked, found, said = train(tmp_path / "warm")
    assert found == asked > 0 and said == ""
    assert fresh["params_sha256"] == cold["params_sha256"] == warm["params_sha256"]

    programs = sorted((tmp_path / NAME).glob("*-cache"))
    whole = [path.stat().st_size for path in programs]
    for path in programs:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    damaged, _, _, said = train(tmp_path / "damaged")
    assert len(said.splitlines()) == 1 and "could not be read or written" in said
    assert damaged["params_sha256"] == fresh["params_sha256"]
    assert [path.stat().st_size for path in programs] == pytest.approx(whole, rel=0.1)  # compiled anew, and kept


def test_a_program_that_cannot_be_kept_is_compiled_again_without_a_word(tmp_path):
    """Where convolutions are oneDNN's, JAX fails to write those programs; all others are found."""
    convolves = ["--config.model.name=cnn", "--config.model.widths=(4,)"]
    train(tmp_path / "cold", *convolves)
    _, asked, found, said = train(tmp_path / "warm", *convolves)
    assert 0 < found <= asked and said == ""


def test_the_other_backend_and_a_folder_of_its_own(tmp_path):
    chosen = ["--config.parallel.backend=shard_map", f"--compile_cache={tmp_path / 'programs'}"]
    cold, _, _, _ = train(tmp_path / "cold", *chosen)
    warm, asked, found, said = train(tmp_path / "warm", *chosen)
    assert found == asked > 0 and said == "" and not (tmp_path / NAME).exists()
    assert cold["params_sha256"] == warm["params_sha256"]
    none, _, found, said = train(tmp_path / "none", *chosen[:1], "--compile_cache=")
    assert found == 0 and said == "" and not (tmp_path / NAME).exists()
    assert none["params_sha256"] == warm["params_sha256"]


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_programs_from_a_folder_that_others_can_write_are_not_run_unless_the_user_names_it(tmp_path, mode):
    folder = tmp_path / NAME
    folder.mkdir()
    folder.chmod(mode)
    assert "can be written by others" in _unusable(folder, named=False)
    assert _unusable(folder, named=True) == ""
    folder.chmod(0o755)
    assert _unusable(folder, named=False) == ""


def test_the_folder_is_made_for_its_owner_alone(tmp_path):
    code = (
        "import os, pathlib, sys; from absl import flags; from linseed.scripts.cli import compile_cache; os.umask(0);"
    )
    code += "flags.FLAGS(['train']); compile_cache.use(workdir=pathlib.Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o700


def test_programs_not_used_for_longest_make_room(tmp_path):
    for age, name in enumerate(["newest", "newer", "older", "oldest"]):
        (tmp_path / f"{name}-cache").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}-cache", (1e9 - age, 1e9 - 1000))  # last read, last written
    (tmp_path / "not ours").write_bytes(bytes(1000))
    prune(tmp_path, most_bytes=250)
    assert {path.name for path in tmp_path.iterdir()} == {"newest-cache", "newer-cache", "not ours"}
