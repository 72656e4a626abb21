"""Evaluates a run's checkpoints: the best one at the end of the run, any of them later.

It evaluates weights, {"params", "model_state"}, on a split, after checking that the data are the run's.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from linseed.trainer.config.resolve import resolve
from linseed.trainer.data.dataset import hashed
from linseed.trainer.data.splits import Split
from linseed.trainer.errors import CheckpointError, ConfigError, DataError
from linseed.trainer.experiment import Experiment, Shared, build
from linseed.trainer.portable import from_run
from linseed.trainer.report import write as report
from linseed.trainer.report.predictions import Collector
from linseed.trainer.run import result as result_lib
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import Checkpoints, NoCheckpoints
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.progress import Progress
from linseed.trainer.runtime import processes
from linseed.trainer.step import state as state_lib
from linseed.trainer.step.scores import score, scores

# The weights that `which` names: {"params", "model_state"} of a state, {} if the run kept none.
WEIGHTS = {
    "best": state_lib.evaluated_weights,
    "ema": lambda state: state.ema,
    "latest": lambda state: {"params": state.params, "model_state": state.model_state},
    "snapshots": state_lib.evaluated_weights,
}


def evaluate_best(
    experiment: Experiment,
    checkpoints: Checkpoints,
    *,
    config: ml_collections.ConfigDict,
    workdir: Path,
    model_file: bool,
    state,
    progress: Progress,
    judge: Sequence[str],
    writer: Quiet,
) -> dict[str, Any]:
    """The end of a run: restores the best checkpoint, opens and evaluates test if asked to, and assembles the result.

    What the report needs of both evaluations is left in `workdir`.
    state: after the last step, on the devices. judge, model_file: as for `train.train_and_evaluate`. Returns the
    contents of `result.json` without the hash of the config.
    """
    best, _ = processes.restored_by_writer(checkpoints.restore_best, like=experiment.state)
    best_step, weights = int(best.step), state_lib.evaluated_weights(best)
    if best_step != progress.best_step:
        writer.say(f"the best checkpoint, of step {progress.best_step}, is lost; using the one of step {best_step}")
    on_devices, test, test_examples = experiment.parallel.replicate(weights), None, None
    val, val_examples = evaluate_each(experiment, on_devices, experiment.val)
    if "test" in judge:
        test_split = processes.agreed(
            lambda: experiment.test.open(by="train", which="best", step=best_step),
            facts=lambda split: {
                "number of test images": len(split.labels),
                "list of test labels": hashed(split.labels.tolist()),
            },
        )
        test, test_examples = evaluate_each(experiment, on_devices, test_split)
    result = result_lib.assemble(
        progress=progress,
        best_step=best_step,
        val=val,
        test=test,
        test_openings=experiment.test.openings,
        steps=int(jax.device_get(state.step)),
        total_steps=experiment.total_steps - progress.shift,
    )
    result["params_sha256"] = result_lib.params_sha256(jax.device_get(state.params))
    result["best_params_sha256"] = result_lib.params_sha256(weights["params"])

    def write_model():
        try:
            from_run.write(
                workdir / workdir_lib.MODEL,
                weights,
                config=config,
                experiment=experiment,
                temperature=val_examples.temperature,
                result=result,
                workdir=workdir,
            )
        except ConfigError as error:  # of a network or a source of a plugin, which trained well
            writer.say(f"no {workdir_lib.MODEL} was written: {error}")

    if model_file:
        processes.from_writer(write_model)
    if processes.is_writer():
        report.keep(
            workdir,
            val=val_examples,
            test=test_examples,
            split=experiment.val,
            class_names=experiment.class_names,
            saliency=lambda images, classes: experiment.saliency(weights, images, classes),
        )
    return result


def evaluate_each(experiment: Experiment, weights, split: Split) -> tuple[dict[str, Any], Collector]:
    """The scores of `weights`, on the devices, on `split`, and what they answered to each example."""
    sums, examples = [], Collector(examples=len(split.labels))
    for some, batch in experiment.evaluate.one_by_one(weights, split):
        sums.append(some)
        examples.add(batch)
    return scores(sums), examples


def evaluate_checkpoint(workdir: Path, *, which: str, split: str) -> dict[str, Any]:
    """Evaluates a checkpoint of the run in `workdir`.

    which: "best" (the best weights on validation), "latest" (the parameters of the newest checkpoint) or "ema" (its
    moving average). split: "val" or "test"; opening test is recorded. Returns the `scores.scores`, `step`, `which`,
    `split` and `test_openings`.
    """
    config = read_run(workdir)
    with workdir_lib.lock(workdir), report.recounted(workdir):
        experiment, [(step, weights)] = restore_weights(config, workdir, which=which, split=split)
        data = experiment.val if split == "val" else experiment.test.open(by="evaluate", which=which, step=step)
        figures = experiment.evaluate(experiment.parallel.replicate(weights), data)
    return {**figures, "step": step, "which": which, "split": split, "test_openings": experiment.test.openings}


def read_run(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`. Raises WorkdirError if there is none, ConfigError if it is invalid."""
    return resolve(workdir_lib.read_config(workdir))


def restore_weights(
    config: ml_collections.ConfigDict, workdir: Path, *, which: str, split: str = "val"
) -> tuple[Experiment, list[tuple[int, dict[str, Any]]]]:
    """The experiment in `workdir`, locked by the caller, and the `(step, weights)` to evaluate, oldest first.

    which: as for `evaluate_checkpoint`, or "snapshots" for all undamaged ones. weights: {"params", "model_state"}, host
    arrays. Raises CheckpointError without a checkpoint, ConfigError without a moving average, DataError if the
    data, or `split`, are not the run's.
    """
    experiment = build(config, workdir, shared=Shared())
    found = []
    with Checkpoints(workdir / workdir_lib.CHECKPOINTS, keep_latest=config.checkpoint.keep_latest) as checkpoints:
        if which == "snapshots":
            restored = checkpoints.restore_all(experiment.state)
        else:
            judge_anew(experiment, checkpoints)
            restore = checkpoints.restore_best if which == "best" else checkpoints.restore_latest
            restored = filter(None, [restore(experiment.state)])
        for state, progress in restored:
            check_same_data(experiment, Progress.from_json(progress))
            if split == "test":
                begun_with = progress.get("test_fingerprint", "")
                experiment.test.check_is(experiment.test.noted() or begun_with, cure="")
            found.append((int(state.step), WEIGHTS[which](state)))
    if not found:
        raise CheckpointError(f"{workdir} has no checkpoint yet; train first")
    if not found[0][1]:
        raise ConfigError(f"{workdir} kept no moving average (config.ema_decay=0); use --which=best or latest")
    return experiment, found


def judge_anew(experiment: Experiment, checkpoints: Checkpoints | NoCheckpoints) -> int:
    """Evaluates the kept checkpoints that were judged by other settings, so that the best is chosen by these.

    Returns how many there were. All processes call it.
    """
    steps = processes.from_writer(lambda: checkpoints.judged_otherwise(experiment.judged_by))
    for step in steps:
        restored = processes.restored_by_writer(
            functools.partial(checkpoints.restore_step, step), like=experiment.state
        )
        if restored is not None:
            weights = experiment.parallel.replicate(state_lib.evaluated_weights(restored[0]))
            found = experiment.evaluate(weights, experiment.val)
            checkpoints.judge({step: score(found, experiment.monitor)})
    return len(steps)


def check_same_data(experiment: Experiment, progress: Progress):
    """Raises DataError for other splits: the run would train on images that it is evaluated on."""
    if progress.fingerprint != experiment.fingerprint:
        raise DataError(
            "the train and validation splits changed since this run started; restore the data and "
            "config.data, or choose another --workdir"
        )
