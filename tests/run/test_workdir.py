"""The folder of a run: one process, one config, whole files."""

import json
import os
import subprocess
import sys

import pytest

from linseed.configs import digits
from linseed.trainer.config.resolve import resolve
from linseed.trainer.errors import WorkdirError
from linseed.trainer.run import workdir as workdir_lib

HOLD = """
import sys, time
from pathlib import Path
from linseed.trainer.run import workdir
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


def begun(workdir, *, checkpoint=True):
    """A workdir with the digits config, and perhaps a checkpoint."""
    config = resolve(digits.get_config())
    workdir_lib.write_config(workdir, config)
    if checkpoint:
        (workdir / "checkpoints" / "4").mkdir(parents=True)
    return config


def test_a_new_folder_and_the_same_config_pass(tmp_path):
    assert workdir_lib.check_config(tmp_path, resolve(digits.get_config()), on_change="refuse") == []
    config = begun(tmp_path)
    assert workdir_lib.check_config(tmp_path, config, on_change="refuse") == []


def test_before_the_first_checkpoint_there_is_nothing_to_protect(tmp_path):
    config = begun(tmp_path, checkpoint=False)
    config.optimizer.lr = 0.5
    assert workdir_lib.check_config(tmp_path, config, on_change="refuse") == ["optimizer.lr: 0.003 -> 0.5"]


@pytest.mark.parametrize("kept", ["checkpoint", "result"])
def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path, kept):
    config = begun(tmp_path, checkpoint=kept == "checkpoint")
    if kept == "result":
        (tmp_path / "result.json").write_text("{}")
    before = (tmp_path / "config.json").read_bytes()
    config.optimizer.lr = 0.5
    with pytest.raises(WorkdirError, match=r"optimizer.lr: 0.003 -> 0.5.*--on_config_change=accept"):
        workdir_lib.check_config(tmp_path, config, on_change="refuse")
    assert workdir_lib.check_config(tmp_path, config, on_change="accept")
    assert (tmp_path / "config.json").read_bytes() == before


def test_an_accepted_change_keeps_the_old_config_and_result(tmp_path):
    config = begun(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    config.optimizer.lr = 0.5
    workdir_lib.write_config(tmp_path, config)
    assert workdir_lib.read_config(tmp_path).optimizer.lr == 0.5
    assert "0.003" in (tmp_path / "config.1.json").read_text()
    assert (tmp_path / "result.1.json").exists() and workdir_lib.read_result(tmp_path) is None


@pytest.mark.parametrize("at", ["config.1.json", "config.json"])
def test_a_kill_while_the_config_is_replaced_leaves_the_old_one(tmp_path, monkeypatch, at):
    config = begun(tmp_path)
    config.optimizer.lr = 0.5

    replace = os.replace

    def kill(temporary, name, **folders):
        if name == at:
            raise KeyboardInterrupt
        replace(temporary, name, **folders)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        workdir_lib.write_config(tmp_path, config)
    assert workdir_lib.read_config(tmp_path).optimizer.lr == 0.003


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_files_of_a_run_without_its_config_are_not_taken_over(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(WorkdirError, match="holds files of a run and no config.json; choose another --workdir"):
        workdir_lib.check_config(tmp_path, resolve(digits.get_config()), on_change="accept")


@pytest.mark.parametrize("text", [None, '{"seed": ', "[]", '{"somebody": "else"}', "\x00"])
def test_a_workdir_without_a_sound_config_is_one_line(tmp_path, text):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match="holds no run|is damaged|is not the config of a run"):
        workdir_lib.read_config(tmp_path)


@pytest.mark.parametrize("name", workdir_lib.FILES)
def test_a_file_of_a_run_that_is_a_link_is_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(WorkdirError, match=f"{name} is a link"), workdir_lib.lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious" and os.listdir(tmp_path / "run") == [name]


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_changed_digit_is_damage_and_a_file_without_a_checksum_is_of_an_earlier_version(tmp_path, name):
    values = {"model": {}, "optimizer": {"lr": 0.25}, **dict.fromkeys(workdir_lib._RESULT_KEYS, 1)}
    read = {
        "config.json": lambda folder: workdir_lib.read_config(folder).to_dict(),
        "result.json": workdir_lib.read_result,
    }[name]
    path = tmp_path / name
    workdir_lib.write_sealed(path, values)
    assert read(tmp_path) == values
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(WorkdirError, match=f"{name} is damaged: it is not what was written; (delete it|train again)"):
        read(tmp_path)
    path.write_text(json.dumps(values))
    assert read(tmp_path) == values


def test_a_torn_result_is_one_line(tmp_path):
    (tmp_path / "result.json").write_text('{"best_st')
    with pytest.raises(WorkdirError, match="result.json is damaged"):
        workdir_lib.read_result(tmp_path)
