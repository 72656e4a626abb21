"""Where a run goes on from: what its workdir holds, the snapshot that is restored, the log that is gone on with.

Each function is called by all processes of a run; process 0, the writer, reads and writes for the others.
"""

from pathlib import Path

import ml_collections

from linseed.trainer.evaluation import check_same_data
from linseed.trainer.experiment import Experiment
from linseed.trainer.optim import chain
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run import writers
from linseed.trainer.run.checkpoint import NoSnapshots, Snapshots
from linseed.trainer.run.progress import Progress
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.runtime import processes
from linseed.trainer.step.state import TrainState


def found(workdir: Path, config: ml_collections.ConfigDict, *, on_config_change: str) -> tuple[bool, dict | None]:
    """Whether `workdir` holds a run of another config, and the result of a run of this one, or None."""

    def look():
        changed = workdir_lib.check_config(workdir, config, on_change=on_config_change)
        return bool(changed), None if changed else workdir_lib.read_result(workdir)

    changed, result = processes.from_writer(look)
    return changed, result


def open_snapshots(workdir: Path, config: ml_collections.ConfigDict) -> Snapshots | NoSnapshots:
    """The snapshots of the run in `workdir`."""
    if not processes.is_writer():
        return NoSnapshots()
    return Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest)


def open_log(workdir: Path, *, step: int, progress: Progress) -> writers.JsonLines | writers.NoLines:
    """The metrics of a run that goes on after `step`, with what was logged until then."""
    if not processes.is_writer():
        return writers.NoLines()
    return writers.JsonLines(workdir / workdir_lib.METRICS, resume_step=step, logged=progress.logged)


def restore(
    experiment: Experiment, snapshots: Snapshots | NoSnapshots, *, rollbacks: Rollbacks, writer: writers.Quiet
) -> tuple[TrainState, Progress]:
    """The state to go on from (host arrays), new where there is no snapshot, and progress.

    Raises DataError where the snapshot is of other splits, and as `Snapshots.restore_latest`.
    """
    devices = experiment.parallel.num_devices
    # A new state is the writer's, too: weights that are made from images are not the same bits on every processor.
    state, saved = processes.restored_by_writer(
        lambda new: snapshots.restore_latest(new) or (new, None), like=experiment.state
    )
    if saved is None:
        progress = Progress(fingerprint=experiment.fingerprint, num_devices=devices)
    else:
        progress = Progress(**saved)
        check_same_data(experiment, progress)
        writer.say(f"resuming after step {int(state.step):,}")
    # The rate and the decay are the config's: it may have been changed.
    lr = experiment.hyperparams["lr"] * processes.from_writer(lambda: rollbacks.lr_scale(int(state.step)))
    hyperparams = {**experiment.hyperparams, "lr": lr}
    state = state.replace(opt_state=chain.with_hyperparams(state.opt_state, **hyperparams))
    if progress.num_devices != devices:
        writer.say(
            f"this run began on {progress.num_devices} devices and goes on with {devices}: dropout draws anew and sums "
            "round otherwise, so that the result will not be the same bit for bit"
        )
    return state, progress
