"""The folder of a run: one process, one config, whole files."""

import subprocess
import sys

import pytest

from configs import digits
from trainer import workdir as workdir_lib
from trainer.errors import WorkdirError

HOLD = """
import sys, time
from pathlib import Path
from trainer import workdir
with workdir.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirError, match="another run is using .*choose another --workdir"):
            with workdir_lib.lock(tmp_path):
                pass
    finally:
        holder.kill()
        holder.communicate()
    with workdir_lib.lock(tmp_path):
        pass


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be written"):
        with workdir_lib.lock(tmp_path / "file" / "run"):
            pass


def test_before_the_first_snapshot_there_is_nothing_to_protect(tmp_path):
    config = digits.get_config()
    workdir_lib.claim(tmp_path, config, on_change="refuse")
    config.optimizer.lr = 0.5
    workdir_lib.claim(tmp_path, config, on_change="refuse")
    assert workdir_lib.read_config(tmp_path).optimizer.lr == 0.5


def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    config = digits.get_config()
    workdir_lib.claim(tmp_path, config, on_change="refuse")
    workdir_lib.claim(tmp_path, config, on_change="refuse")
    before = (tmp_path / "config.json").read_bytes()
    config.optimizer.lr = 0.5
    with pytest.raises(WorkdirError, match=r"optimizer.lr: 0.003 -> 0.5.*--on_config_change=accept"):
        workdir_lib.claim(tmp_path, config, on_change="refuse")
    assert (tmp_path / "config.json").read_bytes() == before


def test_accepting_a_change_keeps_the_old_config_and_result(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    config = digits.get_config()
    workdir_lib.claim(tmp_path, config, on_change="refuse")
    (tmp_path / "result.json").write_text("{}")
    config.optimizer.lr = 0.5
    workdir_lib.claim(tmp_path, config, on_change="accept")
    assert workdir_lib.read_config(tmp_path).optimizer.lr == 0.5
    assert "0.003" in (tmp_path / "config.1.json").read_text()
    assert (tmp_path / "result.1.json").exists() and workdir_lib.read_result(tmp_path) is None


@pytest.mark.parametrize("text", [None, '{"seed": '])
def test_a_workdir_without_a_sound_config_is_one_line(tmp_path, text):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match="holds no run|is damaged"):
        workdir_lib.read_config(tmp_path)
