"""How a run goes on: what its workdir holds, the checkpoint to restore, the log to continue.

All processes of a run call each function. Process 0, the writer, reads and writes for the others.
"""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from linseed.trainer.errors import DataError, WorkdirError
from linseed.trainer.evaluation import check_same_data, judge_anew
from linseed.trainer.experiment import Experiment
from linseed.trainer.optim import chain
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import Checkpoints, NoCheckpoints
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import MetricsLog, NoMetricsLog
from linseed.trainer.run.progress import Progress
from linseed.trainer.run.rollback import Rollbacks
from linseed.trainer.runtime import processes
from linseed.trainer.step.state import TrainState


def inspect(
    workdir: Path, config: ml_collections.ConfigDict, *, on_config_change: str
) -> tuple[list[str], dict | None]:
    """What `config` changes in the run in `workdir`, "key: old -> new", and the run's result, None if unfinished."""

    def read():
        changed = workdir_lib.check_config(workdir, config, on_change=on_config_change)
        return changed, workdir_lib.read_result(workdir)

    changed, result = processes.from_writer(read)
    return changed, result


def open_checkpoints(workdir: Path, config: ml_collections.ConfigDict) -> Checkpoints | NoCheckpoints:
    """The checkpoints of the run in `workdir`."""
    if not processes.is_writer():
        return NoCheckpoints()
    return Checkpoints(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest)


def open_log(workdir: Path, *, step: int, progress: Progress) -> MetricsLog | NoMetricsLog:
    """The log of a run that goes on after `step`. It keeps the records up to there."""
    if not processes.is_writer():
        return NoMetricsLog()
    return MetricsLog(workdir / workdir_lib.METRICS, resume_step=step, logged=progress.logged)


def restore(
    experiment: Experiment,
    checkpoints: Checkpoints | NoCheckpoints,
    *,
    rollbacks: Rollbacks,
    writer: Quiet,
    changed: Sequence[str] = (),
    on_config_change: str = "refuse",
) -> tuple[TrainState, Progress]:
    """The state to go on from (host arrays), a new one where there is no checkpoint, and progress.

    What the config says replaces what was saved: rate, decay, seed, and the place in the schedule where the batch size
    has changed. Checkpoints that were judged by other settings are judged anew. changed: as from `inspect`.
    on_config_change: "accept" takes another test split too. Raises DataError where the checkpoint belongs to other
    splits, and as `Checkpoints.restore_latest`.
    """
    devices = experiment.parallel.num_devices
    # A new state comes from the writer, too: the last bits of weights computed from images depend on the processor.
    state, saved = processes.restored_by_writer(
        lambda new: checkpoints.restore_latest(new) or (experiment.begin(writer.say), None), like=experiment.state
    )
    if saved is None:
        progress = Progress(
            fingerprint=experiment.fingerprint,
            num_devices=devices,
            judged_by=experiment.judged_by,
            batch_size=experiment.batch_size,
            monitor=experiment.monitor,
        )
    else:
        progress = Progress.from_json(saved)
        check_same_data(experiment, progress)
        _check_same_test(experiment, progress, on_config_change=on_config_change, writer=writer)
        writer.say(f"resuming after step {int(state.step):,}")
        progress = _judged_anew(experiment, checkpoints, progress, changed=changed, writer=writer)
        state, progress = _in_steps_of_this_batch(experiment, state, progress, changed=changed, writer=writer)
    # Learning rate and weight decay come from the config, which may have changed since.
    lr = experiment.hyperparams["lr"] * processes.from_writer(lambda: rollbacks.lr_scale(int(state.step)))
    hyperparams = {**experiment.hyperparams, "lr": lr}
    state = state.replace(opt_state=chain.with_hyperparams(state.opt_state, **hyperparams), rng=experiment.state.rng)
    if progress.num_devices != devices:
        writer.say(
            f"this run began on {progress.num_devices} devices and goes on with {devices}: dropout masks and rounding "
            "will differ, so that the result is not the same bit for bit"
        )
    return state, progress.replace(test_fingerprint=experiment.test.fingerprint)


def _check_same_test(experiment, progress, *, on_config_change, writer):
    """Raises DataError for another test split than the run began with or opened, unless the user accepts it."""
    known = processes.from_writer(lambda: experiment.test.noted() or progress.test_fingerprint)
    try:
        experiment.test.check_is(known, cure=", or go on with it by --on_config_change=accept")
    except DataError as error:
        if on_config_change != "accept":
            raise
        writer.say(str(error).partition(";")[0])


def check_goes_on(workdir: Path, *, step: int, total_steps: int, progress: Progress, patience: int, finished: bool):
    """Raises WorkdirError where a changed config leaves no step to train: nothing is opened, and the run stays.

    step: the last one that is saved. finished: whether the run has its result; without one it may end with this config.
    """
    is_past = step > total_steps or finished and step == total_steps
    if is_past or finished and progress.is_stale(patience):
        end = "early stopping ends it there" if not is_past else f"this config ends it after {total_steps:,}"
        raise WorkdirError(
            f"the run in {workdir} has made {step:,} steps and {end}: nothing is left to train, test is not opened; "
            "raise config.horizon, or choose another --workdir"
        )


def _judged_anew(experiment, checkpoints, progress, *, changed, writer):
    """`progress` once all kept checkpoints are judged by the settings of `experiment`."""
    judged = judge_anew(experiment, checkpoints)
    if progress.judged_by == experiment.judged_by:
        return progress
    if not progress.judged_by and not changed:  # saved by an earlier version, under the same config
        return progress.replace(judged_by=experiment.judged_by)
    if judged:
        writer.say(f"evaluations have other settings than before: judged {judged} kept checkpoints anew")
    best = processes.from_writer(lambda: checkpoints.best())
    return progress.judged_anew(by=experiment.judged_by, monitor=experiment.monitor, best=best)


def _in_steps_of_this_batch(experiment, state, progress, *, changed, writer):
    """Where the batch size has changed, the run goes on after as many examples, not as many steps."""
    step, old, new = int(state.step), progress.batch_size, experiment.batch_size
    if not old and any(line.startswith("data.batch_size:") for line in changed):
        raise WorkdirError(
            "the checkpoints of an earlier version do not say their batch size; go on with the old "
            "config.data.batch_size, or choose another --workdir"
        )
    if old in (0, new):
        return state, progress.replace(batch_size=new)
    examples = (step + progress.shift) * old
    place = examples // new
    writer.say(
        f"batch size {old} -> {new}: the {examples:,} examples seen so far are {place:,} steps of the new size; epochs "
        "and the schedule go on from there"
    )
    state = state.replace(opt_state=chain.with_schedule_at(state.opt_state, place))
    return state, progress.replace(batch_size=new, shift=place - step, rows=[])
