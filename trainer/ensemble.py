"""Ensembles: averages the predictions of several members per example; the largest average wins.

Members are independent runs, or the checkpoints of one run with a cyclic learning rate (Huang et al. 2017, "Snapshot
Ensembles: Train 1, get M for free"). They may have different models, but the same data, classes and loss.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linseed.trainer import evaluation
from linseed.trainer.config import canonical
from linseed.trainer.data import batching
from linseed.trainer.data.splits import SealedTest
from linseed.trainer.errors import ConfigError, DataError, WorkdirError
from linseed.trainer.report import write as report
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.runtime.data_parallel import AXIS
from linseed.trainer.step import losses, scores


def mean_softmax(logits: jax.Array) -> jax.Array:
    """log of the members' mean softmax probability, float32 [M, B, C] -> [B, C]; its softmax is that mean.

    The sum is over logarithms: if every member rules a label out, its loss is large but not infinite.
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))


def mean_sigmoid(logits: jax.Array) -> jax.Array:
    """The log-odds of the members' mean sigmoid probability of each class, float32 [M, B, C] -> [B, C]."""
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=0) for sign in (1, -1))
    return yes - no


def mean_scores(logits: jax.Array) -> jax.Array:
    """The members' mean score, float32 [M, B, C] -> [B, C]; SVM scores are not probabilities."""
    return jnp.mean(logits, axis=0)


# By the members' training loss. Each returns logits, so the same loss can evaluate the average.
AVERAGES = {
    "sigmoid": mean_sigmoid,
    "softmax": mean_softmax,
    "svm": mean_scores,
    "weighted_softmax": mean_softmax,
}


class Run(NamedTuple):
    """One workdir's part of an ensemble: its checkpoints, all of one model."""

    workdir: Path
    steps: tuple[int, ...]  # of its S checkpoints
    weights: Any  # {"params", "model_state"}, host arrays with a leading axis [S]
    num_classes: int
    logits: Callable  # (weights, images) -> [B, C]


def make_ensemble_step(*, logits: Sequence[Callable], average: Callable, loss: Callable) -> Callable:
    """`ensemble_step(weights, batch) -> (sums, member_sums)`, under the contract of `trainer.runtime.data_parallel`.

    logits: for each run, (weights, images uint8 [B, H, W, C]) -> [B, C]. average: an entry of AVERAGES. loss: (logits,
    labels) -> [B]. weights: for each run, its checkpoints stacked along a leading axis. The sums are those of
    `scores.class_sums`, for the average and for each member, run by run.
    """

    def ensemble_step(weights, batch):
        runs = [
            jax.lax.map(lambda checkpoint, run=run: run(checkpoint, batch["image"]), stacked)
            for run, stacked in zip(logits, weights, strict=True)
        ]
        members = jnp.concatenate(runs)  # [M, B, C]

        def sums(logits):
            return scores.class_sums(
                losses=loss(logits, batch["label"]), logits=logits, labels=batch["label"], mask=batch["mask"]
            )

        return jax.lax.psum((sums(average(members)), [sums(logits) for logits in members]), AXIS)

    return ensemble_step


def evaluate_ensemble(workdirs: Sequence[Path], *, which: str, split: str) -> dict[str, Any]:
    """Evaluates the ensemble of the runs in `workdirs`, every example once.

    which: for each run, "best", "latest" or "ema" as in `evaluation.evaluate_checkpoint`, or "snapshots": all undamaged
    checkpoints that it kept (config.checkpoint.keep_latest, and the best), with their validation weights. split: "val"
    or "test". Test is opened once, after every workdir has recorded the opening with its newest step in use.

    It averages probabilities for the softmax losses, each class's own probability for `sigmoid`, scores for `svm`.
    `loss` is the members' loss of that average, without label smoothing: for `softmax` -log of the label's mean
    probability, in nats. Each device holds all weights at once.

    Returns the `scores.scores` of the average; `members`, each with `workdir`, `step` and its own `accuracy`,
    `balanced_accuracy` and `loss`; `which`, `split`; and `test_openings` by workdir. Raises WorkdirError for a
    workdir given twice, ConfigError for members of different losses, DataError for members of different data or
    classes, and the errors of restoring each.
    """
    _check_workdirs(workdirs)
    configs = [evaluation.read_run(workdir) for workdir in workdirs]
    for config, workdir in zip(configs[1:], workdirs[1:], strict=True):
        _check_same_sections(config, configs[0], workdir=workdir, first=workdirs[0], split=split)
    with contextlib.ExitStack() as locks:
        for workdir in workdirs:
            locks.enter_context(workdir_lib.lock(workdir))
            locks.enter_context(report.recounted(workdir))
        run, experiment = _restore(configs[0], workdirs[0], which=which, split=split)
        runs = [run]
        for config, workdir in zip(configs[1:], workdirs[1:], strict=True):
            run, other = _restore(config, workdir, which=which, split=split)
            if (other.fingerprint, run.num_classes) != (experiment.fingerprint, runs[0].num_classes):
                raise DataError(
                    f"{workdir} and {workdirs[0]} have different train and validation splits or classes; "
                    "choose runs with the same config.data"
                )
            if split == "test" and other.test.fingerprint != experiment.test.fingerprint:
                raise DataError(
                    f"{workdir} and {workdirs[0]} have different test splits; choose runs with the same config.data, "
                    "or --split=val"
                )
            runs.append(run)
        seals = _seals(runs, experiment.test)
        data = experiment.val if split == "val" else _open(seals, runs, which=which)
        loss = losses.make_loss(**configs[0].loss, label_smoothing=0.0)
        average = AVERAGES[configs[0].loss.name]
        ensemble_step = make_ensemble_step(logits=[run.logits for run in runs], average=average, loss=loss)
        ensemble_step = experiment.parallel.compile(ensemble_step, donate=False)
        weights = experiment.parallel.replicate([run.weights for run in runs])
        batches = batching.eval_batches(data, batch_size=configs[0].eval.batch_size)
        sums = jax.device_get([ensemble_step(weights, experiment.parallel.shard(batch)) for batch in batches])
        openings = {str(run.workdir): seal.openings for run, seal in zip(runs, seals, strict=True)}
    names = [{"workdir": str(run.workdir), "step": step} for run in runs for step in run.steps]
    each = [scores.scores(member) for member in zip(*(members for _, members in sums), strict=True)]
    return {
        **scores.scores([together for together, _ in sums]),
        "members": [
            {**name, **{key: own[key] for key in scores.MONITORS}} for name, own in zip(names, each, strict=True)
        ],
        "which": which,
        "split": split,
        "test_openings": openings,
    }


def _check_workdirs(workdirs):
    if not workdirs:
        raise WorkdirError("an ensemble needs at least one run; pass its --workdir")
    places = [workdir.resolve() for workdir in workdirs]
    for index, workdir in enumerate(workdirs):
        if places[index] in places[:index]:
            raise WorkdirError(f"--workdir={workdir} is given twice; pass each member of the ensemble once")


def _check_same_sections(config, first_config, *, workdir, first, split):
    changed = canonical.differences(first_config.loss, config.loss)
    if changed:
        raise ConfigError(
            f"{workdir} has another config.loss than {first} ({'; '.join(changed)}): their predictions cannot be "
            "averaged; choose runs with the same loss"
        )
    changed = canonical.differences(first_config.data.source, config.data.source)
    if changed and split == "test":  # no fingerprint covers test, and it is opened for all runs at once
        raise DataError(
            f"{workdir} has another config.data.source than {first} ({'; '.join(changed)}): their test splits may "
            "differ; choose runs with the same source, or --split=val"
        )


def _restore(config, workdir, *, which, split):
    """The `Run` in `workdir`, which is locked, and its experiment."""
    experiment, checkpoints = evaluation.restore_weights(config, workdir, which=which, split=split)
    steps, weights = zip(*checkpoints, strict=True)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *weights)
    return Run(workdir, steps, stacked, experiment.num_classes, experiment.logits), experiment


def _seals(runs, first_test):
    """Each run's seal on their common test split; only the first one reads the data."""
    others = [
        SealedTest(lambda: None, record=run.workdir / workdir_lib.OPENINGS, fingerprint=first_test.fingerprint)
        for run in runs[1:]
    ]
    return [first_test, *others]


def _open(seals, runs, *, which):
    """Opens the test split for all `runs`: the first run's seal comes last, so all record it before it is read."""
    for seal, run in reversed(list(zip(seals, runs, strict=True))):
        split = seal.open(by="evaluate", which=f"ensemble of {which}", step=max(run.steps))
    return split
