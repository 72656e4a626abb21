"""How a run goes on: what its workdir holds, the checkpoint to restore, the log to continue.

All processes of a run call each function. Process 0, the writer, reads and writes for the others.
"""

from pathlib import Path

import ml_collections

from linseed.trainer.evaluation import check_same_data
from linseed.trainer.experiment import Experiment
from linseed.trainer.optim import chain
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import NoSnapshots, Snapshots
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import MetricsLog, NoMetricsLog
from linseed.trainer.run.progress import Progress
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.runtime import processes
from linseed.trainer.step.state import TrainState


def inspect(workdir: Path, config: ml_collections.ConfigDict, *, on_config_change: str) -> tuple[bool, dict | None]:
    """Whether `workdir` holds a run of another config, and the result of a finished run of this config, or None."""

    def read():
        changed = workdir_lib.check_config(workdir, config, on_change=on_config_change)
        return bool(changed), None if changed else workdir_lib.read_result(workdir)

    changed, result = processes.from_writer(read)
    return changed, result


def open_checkpoints(workdir: Path, config: ml_collections.ConfigDict) -> Snapshots | NoSnapshots:
    """The checkpoints of the run in `workdir`."""
    if not processes.is_writer():
        return NoSnapshots()
    return Snapshots(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest)


def open_log(workdir: Path, *, step: int, progress: Progress) -> MetricsLog | NoMetricsLog:
    """The log of a run that goes on after `step`. It keeps the records up to there."""
    if not processes.is_writer():
        return NoMetricsLog()
    return MetricsLog(workdir / workdir_lib.METRICS, resume_step=step, logged=progress.logged)


def restore(
    experiment: Experiment, checkpoints: Snapshots | NoSnapshots, *, rollbacks: Rollbacks, writer: Quiet
) -> tuple[TrainState, Progress]:
    """The state to go on from (host arrays), a new one where there is no checkpoint, and progress.

    Raises DataError where the checkpoint belongs to other splits, and as `Snapshots.restore_latest`.
    """
    devices = experiment.parallel.num_devices
    # A new state comes from the writer, too: the last bits of weights computed from images depend on the processor.
    state, saved = processes.restored_by_writer(
        lambda new: checkpoints.restore_latest(new) or (new, None), like=experiment.state
    )
    if saved is None:
        progress = Progress(fingerprint=experiment.fingerprint, num_devices=devices)
    else:
        progress = Progress(**saved)
        check_same_data(experiment, progress)
        writer.say(f"resuming after step {int(state.step):,}")
    # Learning rate and weight decay come from the config, which may have changed since.
    lr = experiment.hyperparams["lr"] * processes.from_writer(lambda: rollbacks.lr_scale(int(state.step)))
    hyperparams = {**experiment.hyperparams, "lr": lr}
    state = state.replace(opt_state=chain.with_hyperparams(state.opt_state, **hyperparams))
    if progress.num_devices != devices:
        writer.say(
            f"this run began on {progress.num_devices} devices and goes on with {devices}: dropout masks and rounding "
            "will differ, so that the result is not the same bit for bit"
        )
    return state, progress
