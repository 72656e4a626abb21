"""Checkpoints: what is kept, what comes back, and what happens to one that is damaged."""

import errno
import json
import logging
import math
import os

import jax
import numpy as np
import pytest

from linseed.trainer import files
from linseed.trainer.errors import CheckpointError, WorkdirError
from linseed.trainer.run.checkpoint import Checkpoints
from linseed.trainer.step.state import TrainState


def state_at(step, *, size=64):
    rng = np.random.default_rng(step)
    return TrainState(
        step=np.array(step, np.int32),
        params={"dense": {"kernel": rng.normal(size=(size, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)}},
        model_state={},
        opt_state=({"trace": rng.normal(size=(size, 8)).astype(np.float32)},),
        rng=np.array([0, 7], np.uint32),
        ema={},
    )


def save_all(directory, accuracies, *, keep_latest=1):
    with Checkpoints(directory, keep_latest=keep_latest) as checkpoints:
        for step, accuracy in enumerate(accuracies, start=1):
            checkpoints.save(state_at(step), step=step, progress={"evaluations": step}, val_accuracy=accuracy)


def assert_is_step(restored, step):
    state, progress = restored
    assert progress == {"evaluations": step}
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    assert jax.tree.structure(state) == jax.tree.structure(state_at(step))


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.9, 0.5, 0.3], 1),
        ([0.1, 0.5, 0.9], 3),
        ([0.1, 0.9, 0.5], 2),
        ([0.5, 0.5, 0.5], 3),
        ([math.nan, 0.2, math.nan], 2),
        ([0.0], 1),
    ],
)
def test_latest_and_best_both_survive_any_order_of_metrics(tmp_path, accuracies, best):
    save_all(tmp_path / "checkpoints", accuracies)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        assert checkpoints.steps() == sorted({best, len(accuracies)})
        assert_is_step(checkpoints.restore_best(state_at(0)), best)
        assert_is_step(checkpoints.restore_latest(state_at(0)), len(accuracies))


def test_a_checkpoint_without_an_evaluation_lasts_until_the_next_and_is_never_the_best(tmp_path):
    """3 was saved where the run stopped; those of evaluations are kept as if it were not there."""
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        for step, accuracy in ((1, 0.1), (2, 0.0), (3, None)):
            checkpoints.save(state_at(step), step=step, progress={"evaluations": step}, val_accuracy=accuracy)
        assert checkpoints.evaluated_steps() == [1, 2] and checkpoints.steps() == [1, 2, 3]
        assert_is_step(checkpoints.restore_best(state_at(0)), 1)
        assert_is_step(checkpoints.restore_latest(state_at(0)), 3)
        assert [progress["evaluations"] for _, progress in checkpoints.restore_all(state_at(0))] == [1, 2]
        checkpoints.save(state_at(4), step=4, progress={"evaluations": 4}, val_accuracy=0.05)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 4]
        checkpoints.drop_after(2)
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(state_at(3), step=3, progress={"evaluations": 3}, val_accuracy=0.5)


def test_keep_latest_keeps_that_many_beside_the_best(tmp_path):
    save_all(tmp_path / "checkpoints", [0.9, 0.1, 0.1, 0.1, 0.1], keep_latest=2)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.steps() == [1, 4, 5]


def test_all_that_are_kept_come_back_oldest_first(tmp_path):
    save_all(tmp_path / "checkpoints", [0.9, 0.1, 0.3, 0.2], keep_latest=2)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        for restored, step in zip(checkpoints.restore_all(state_at(0)), (1, 3, 4), strict=True):
            assert_is_step(restored, step)


def test_nothing_saved_restores_nothing(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        assert list(checkpoints.restore_all(state_at(0))) == []
        assert checkpoints.restore_latest(state_at(0)) is None
        assert checkpoints.restore_best(state_at(0)) is None


def test_the_saved_arrays_are_those_of_the_call_though_the_caller_overwrites_them(tmp_path):
    state = state_at(1)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        checkpoints.save(state, step=1, progress={"evaluations": 1}, val_accuracy=0.5)
        state.params["dense"]["kernel"][:] = -1.0
        checkpoints.wait()
        assert_is_step(checkpoints.restore_latest(state_at(0)), 1)


def test_all_of_a_checkpoint_is_on_the_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    """A power cut takes what was not forced to the disk; TensorStore forces its own files alone."""
    synced, gone, fsync = set(), [], os.fsync

    def noted(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        delete = checkpoints._manager.delete

        def deleted(step):
            folder = tmp_path / "checkpoints" / str(step + 1)
            left = [path for path in (folder.parent, folder, *folder.rglob("*")) if path.stat().st_ino not in synced]
            gone.append((step, left))
            delete(step)

        monkeypatch.setattr(checkpoints._manager, "delete", deleted)
        for step in (1, 2, 3):  # the newest is the best
            checkpoints.save(state_at(step), step=step, progress={}, val_accuracy=step / 10)
    assert gone == [(1, []), (2, [])]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3"]


@pytest.mark.parametrize("name", ["4", "4.orbax-checkpoint-tmp", "5"])
def test_a_checkpoint_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path, name):
    save_all(tmp_path / "checkpoints", [0.1, 0.9])
    (tmp_path / "outside" / "precious").mkdir(parents=True)
    (tmp_path / "checkpoints" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(WorkdirError, match=f"checkpoints/{name} is a link"):
        Checkpoints(tmp_path / "checkpoints", keep_latest=1)
    assert (tmp_path / "outside" / "precious").exists()


def test_a_damaged_checkpoint_is_not_moved_out_of_the_folder(tmp_path):
    workdir, outside = tmp_path / "run", tmp_path / "outside"
    save_all(workdir / "checkpoints", [0.1, 0.9], keep_latest=2)
    outside.mkdir()
    (workdir / "damaged_checkpoints").symlink_to(outside)
    tear_the_metrics(workdir / "checkpoints" / "1")
    with files.held(workdir), pytest.raises(WorkdirError, match="damaged_checkpoints is a link"):
        Checkpoints(workdir / "checkpoints", keep_latest=2)
    assert not list(outside.iterdir()) and (workdir / "checkpoints" / "1").exists()


def test_no_checkpoint_goes_into_a_folder_that_is_not_the_runs(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with files.held(workdir), Checkpoints(workdir / "checkpoints", keep_latest=1) as checkpoints:
        checkpoints.save(state_at(1), step=1, progress={}, val_accuracy=0.1)
        checkpoints.wait()
        workdir.rename(tmp_path / "moved")
        (workdir / "checkpoints").mkdir(parents=True)
        with pytest.raises(WorkdirError, match="was deleted, moved or replaced"):
            checkpoints.save(state_at(2), step=2, progress={}, val_accuracy=0.2)
    assert not list((workdir / "checkpoints").iterdir()) and (tmp_path / "moved" / "checkpoints" / "1").exists()


def flip_a_byte_of_the_weights(folder):
    largest = max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x40
    largest.write_bytes(data)


def truncate_the_weights(folder):
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_the_weights(folder):
    for path in (folder / "state").rglob("d/*"):
        path.unlink()


def change_the_progress(folder):
    path = folder / "record" / "metadata"
    text = path.read_text()
    path.write_text(text.replace(f'"evaluations": {folder.name}', '"evaluations": 7'))
    assert path.read_text() != text


def change_a_shape_in_the_record(folder):
    path = folder / "record" / "metadata"
    text = path.read_text()
    path.write_text(text.replace("64", "32", 1))
    assert path.read_text() != text


def tear_the_metrics(folder):
    (folder / "metrics" / "metrics").write_text('{"val_acc')


def empty_the_folder(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


DAMAGES = [
    flip_a_byte_of_the_weights,
    truncate_the_weights,
    lose_the_weights,
    change_the_progress,
    change_a_shape_in_the_record,
    tear_the_metrics,
    empty_the_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_is_moved_aside_and_the_one_before_is_used(tmp_path, caplog, damage):
    save_all(tmp_path / "checkpoints", [0.1, 0.9, 0.5], keep_latest=2)
    damage(tmp_path / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert_is_step(checkpoints.restore_latest(state_at(0)), 2)
        assert checkpoints.steps() == [2]
        checkpoints.save(state_at(3), step=3, progress={"evaluations": 3}, val_accuracy=0.5)
        assert_is_step(checkpoints.restore_latest(state_at(0)), 3)
    assert len(list((tmp_path / "damaged_checkpoints").iterdir())) == 1
    assert "checkpoint of step 3 is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_gives_way_to_the_next_best(tmp_path, damage):
    save_all(tmp_path / "checkpoints", [0.9, 0.1, 0.5, 0.3], keep_latest=3)
    damage(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path / "checkpoints", keep_latest=3) as checkpoints:
        assert_is_step(checkpoints.restore_best(state_at(0)), 3)
        assert_is_step(checkpoints.restore_latest(state_at(0)), 4)


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_all_the_damaged_one_is_moved_aside_and_the_others_come_back(tmp_path, damage):
    save_all(tmp_path / "checkpoints", [0.9, 0.1, 0.5], keep_latest=3)
    damage(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path / "checkpoints", keep_latest=3) as checkpoints:
        for restored, step in zip(checkpoints.restore_all(state_at(0)), (1, 3), strict=True):
            assert_is_step(restored, step)
        assert checkpoints.steps() == [1, 3]


def test_a_checkpoint_of_another_model_is_refused_and_stays(tmp_path):
    save_all(tmp_path / "checkpoints", [0.5])
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        with pytest.raises(CheckpointError, match="is of another model or optimizer .*trace.*use a new --workdir"):
            checkpoints.restore_latest(state_at(0, size=32))
        assert checkpoints.steps() == [1]


def test_a_step_that_is_not_newer_is_an_error_not_a_silence(tmp_path):
    save_all(tmp_path / "checkpoints", [0.5, 0.6])
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint was written at step 1"):
            checkpoints.save(state_at(1), step=1, progress={}, val_accuracy=0.1)


def test_metrics_on_disk_are_plain_json(tmp_path):
    save_all(tmp_path / "checkpoints", [0.5])
    assert json.loads((tmp_path / "checkpoints" / "1" / "metrics" / "metrics").read_text()) == {"val_accuracy": 0.5}


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_all_are_damaged_the_run_stops_and_says_where_they_are(tmp_path, damage):
    save_all(tmp_path / "checkpoints", [0.5])
    damage(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:
        with pytest.raises(
            CheckpointError, match="every checkpoint in .* was damaged and is now in .*damaged_checkpoints"
        ):
            checkpoints.restore_latest(state_at(0))
        with pytest.raises(CheckpointError, match="every checkpoint in"):
            list(checkpoints.restore_all(state_at(0)))


@pytest.mark.parametrize("code", ["EMFILE", "EIO"])
def test_a_read_that_the_machine_failed_costs_no_checkpoint(tmp_path, monkeypatch, code):
    save_all(tmp_path / "checkpoints", [0.5, 0.9])
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:

        def fail(*_, **__):
            raise ValueError("while reading") from OSError(getattr(errno, code), "no")

        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(CheckpointError, match="cannot be read now"):
            checkpoints.restore_latest(state_at(0))
        assert checkpoints.steps() == [2]


def test_a_full_disk_is_named_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    """The words are those that Orbax was seen to use on a full tmpfs."""
    save_all(tmp_path / "checkpoints", [0.5])
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1) as checkpoints:

        def fail():
            raise ValueError(
                "RESOURCE_EXHAUSTED: Failed to write 4 bytes: No space left on device [os_error_code='28']"
            )

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints._manager, "wait_until_finished", fail)
            with pytest.raises(CheckpointError, match="the disk of .* is full; earlier checkpoints are sound: free"):
                checkpoints.wait()
        assert_is_step(checkpoints.restore_latest(state_at(0)), 1)
