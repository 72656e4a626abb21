"""A full disk, a real one: one line, sound checkpoints, and the same end once there is room again."""

import pytest

from linseed.scripts.bench.cases import tiny
from linseed.scripts.faults import full_disk
from linseed.trainer import train
from linseed.trainer.errors import LinseedError
from linseed.trainer.experiment import Shared, build
from linseed.trainer.run.checkpoint import Checkpoints
from linseed.trainer.run.console import Quiet


@pytest.fixture
def disk(tmp_path):
    try:
        with full_disk.small_disk(tmp_path / "disk") as folder:
            yield folder
    except full_disk.NoMountError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")


class Fills(Quiet):
    """Fills the disk when the record of `step` is written, just before that step's checkpoint is."""

    def __init__(self, filler, *, step):
        self._filler, self._step = filler, step

    def write(self, record):
        if record["step"] == self._step:
            self._filler.fill()


@pytest.mark.parametrize("step", [4, 12, 24])
def test_a_run_on_a_full_disk_stops_with_a_line_and_goes_on_when_there_is_room(disk, tmp_path, step):
    shared, config = Shared(), tiny()
    straight = train.train_and_evaluate(
        config, tmp_path / "straight", writer=Quiet(), on_config_change="refuse", shared=shared
    )
    filler, workdir = full_disk.Filler(disk), disk / "run"
    with pytest.raises((LinseedError, OSError)) as caught:
        writer = Fills(filler, step=step)
        train.train_and_evaluate(config, workdir, writer=writer, on_config_change="refuse", shared=shared)
    assert "full" in str(caught.value) or "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    filler.free()
    with Checkpoints(workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest) as checkpoints:
        restored = checkpoints.restore_latest(build(config, tmp_path, shared=shared).state)
        # The save before may have been under way.
        assert (int(restored[0].step) if restored else 0) in (max(0, step - 8), step - 4)
    again = train.train_and_evaluate(config, workdir, writer=Quiet(), on_config_change="refuse", shared=shared)
    for key in ("params_sha256", "best_params_sha256", "best_step", "val", "test"):
        assert again[key] == straight[key], key
