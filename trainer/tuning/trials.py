"""One trial: a config with a few changes, trained for some steps in its own workdir, and later for more."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from linseed.trainer import resume
from linseed.trainer.config.changes import changed
from linseed.trainer.data import splits
from linseed.trainer.errors import NonFiniteError, WorkdirError
from linseed.trainer.experiment import Shared, build, load_left_out
from linseed.trainer.optim.schedules import durations_to_steps
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.console import Quiet
from linseed.trainer.run.metrics_log import read_records
from linseed.trainer.runtime import signals
from linseed.trainer.step import scores
from linseed.trainer.step import state as state_lib
from linseed.trainer.train import train_and_evaluate
from linseed.trainer.tuning.diagnosis.curve import Accuracy, CleanPass

LEAST_SAMPLE = 1000  # of train images in the clean pass

TRIALS = "trials"  # the folder of their workdirs
UNTRAINED = f"{TRIALS}/untrained"  # what step 1 looks at


class Outcome(NamedTuple):
    """The result of a trial. failed: why it ended early, or ""; the metrics of a failed trial are NaN."""

    steps: int
    train_loss: float = math.nan  # of the last log window
    train_accuracy: float = math.nan
    best_train_accuracy: float = math.nan  # of all windows
    val_loss: float = math.nan
    val_accuracy: float = math.nan
    best_val_accuracy: float = math.nan  # of the best checkpoint
    val_examples: int = 0
    score: float = math.nan  # what config.eval.monitor names, the higher the better: see `scores.score`
    score_error: float = math.nan  # its standard error; of a balanced accuracy that of the best checkpoint
    best_score: float = math.nan  # of the best checkpoint
    beside: str = ""  # what stands beside `val_accuracy`: see `scores.beside`
    best_beside: str = ""  # and beside `best_val_accuracy`
    seconds: float = 0.0  # of the whole trial so far
    step_seconds: float = math.nan  # of a step, without compilation and evaluation
    failed: str = ""

    @property
    def learned(self) -> bool:
        """Whether every image of a log window was right."""
        return self.best_train_accuracy == 1.0


def at_point(config: ml_collections.ConfigDict, point: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """`config` with the rate, the decay and the further keys of `point`."""
    owned = {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay"}
    return changed(config, {owned.get(key, key): value for key, value in point.items()})


def at_constant_rate(
    config: ml_collections.ConfigDict, *, steps: int, eval_every_steps: int, log_every_steps: int
) -> ml_collections.ConfigDict:
    """`config` for `steps` steps at its peak rate. A longer run begins the same way, so it can continue this one."""
    evaluation = {key: value for key, value in config.eval.items() if not key.startswith("every_")}
    return changed(
        config,
        {
            "schedule": {"name": "constant", "warmup_steps": 0},
            "horizon": {"steps": steps},
            "eval": {"every_steps": eval_every_steps, **evaluation},
            "early_stopping.patience": 0,
            "log_every_steps": log_every_steps,
            "checkpoint.keep_latest": 1,
        },
    )


def plain(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` without augmentation and mixing."""
    return changed(config, {"data.augment": "", "data.mix": {"name": "none"}})


def unregularised(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` without a regulariser."""
    return changed(config, {"regularizer": {"name": "none"}})


def sample(config: ml_collections.ConfigDict, *, examples: int) -> ml_collections.ConfigDict:
    """`config` on a few images, without all that would keep the network from memorising them."""
    off = {"data.train_examples": examples, "label_smoothing": 0.0, "ema_decay": 0.0, "regularizer": {"name": "none"}}
    off |= {f"model.{key}": 0.0 for key in ("dropout", "drop_path") if key in config.model}
    return changed(plain(config), off)


def shortened(
    config: ml_collections.ConfigDict, *, steps: int, total_steps: int, num_examples: int
) -> ml_collections.ConfigDict:
    """`config`, a run of `total_steps`, shortened to `steps`: its schedule is scaled down."""
    if steps == total_steps:
        return config
    batch_size = config.data.batch_size
    schedule = durations_to_steps(
        "schedule", config.schedule, num_examples=num_examples, batch_size=batch_size, total_steps=total_steps
    )
    for key, value in schedule.items():
        if key.endswith("steps"):
            many = isinstance(value, (tuple, list))
            scaled = [max(round(item * steps / total_steps), min(item, 1)) for item in (value if many else (value,))]
            # Milestones that fall on one step are merged.
            schedule[key] = tuple(sorted({item for item in scaled if item < steps})) if many else scaled[0]
    return changed(config, {"schedule": schedule, "horizon": {"steps": steps}})


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared, stop: Callable[[], int] = signals.never
) -> Outcome:
    """Trains `config` in `workdir`, or continues it. The test split stays sealed. stop: as for `train_and_evaluate`.

    NaN or Inf ends the trial, whatever config.guard says: a trial judges its learning rate.
    """
    try:
        result = train_and_evaluate(
            changed(config, {"guard.on_non_finite": "stop"}),
            workdir,
            writer=Quiet(),
            on_config_change="accept",
            judge=("val",),
            model_file=False,
            shared=shared,
            stop=stop,
        )
    except NonFiniteError as error:
        last = records(workdir)[-1:]
        return Outcome(steps=last[0]["step"] if last else 0, failed=str(error).partition(" (")[0])
    found, speed = records(workdir), result["images_per_second"]
    if not found or found[-1]["step"] != result["steps"] or "val_loss" not in found[-1]:
        raise WorkdirError(
            f"{workdir / workdir_lib.METRICS} is damaged: the last record is lost; delete {workdir} and run the same "
            "command again, which trains it again"
        )
    monitor = config.eval.get("monitor", "accuracy")
    val = {key.removeprefix("val_"): value for key, value in found[-1].items() if key.startswith("val_")}
    last = found[-1]
    return Outcome(
        steps=last["step"],
        train_loss=last["train_loss"],
        train_accuracy=last["train_accuracy"],
        best_train_accuracy=max(record["train_accuracy"] for record in found),
        val_loss=last["val_loss"],
        val_accuracy=last["val_accuracy"],
        best_val_accuracy=result["val"]["accuracy"],
        val_examples=last["val_examples"],
        score=scores.score(val, monitor),
        score_error=scores.standard_error({**result["val"], **val}, monitor),
        best_score=scores.score(result["val"], monitor),
        beside=scores.beside(val),
        best_beside=scores.beside(result["val"]),
        seconds=result["seconds"],
        step_seconds=config.data.batch_size / speed if speed else math.nan,
    )


def folder(study: Path, name: str) -> Path:
    """The workdir of the trial `name` in the folder of a study. Raises WorkdirError for a name that leads elsewhere."""
    if not isinstance(name, str) or not re.fullmatch("[a-z]+-[0-9]+", name):  # whoever shares the storage writes it
        raise WorkdirError(
            f"a trial of this study names the folder {name!r}, which no trial has; choose another --storage"
        )
    return study / TRIALS / name


def clean_pass(config: ml_collections.ConfigDict, workdir: Path, *, shared: Shared) -> CleanPass | None:
    """Evaluates the checkpoints of the trial in `workdir` on validation and as many train images; None without any."""
    experiment = build(config, workdir, shared=shared)
    most = max(LEAST_SAMPLE, len(experiment.val.labels))
    some = np.random.default_rng(0).permutation(len(experiment.train.labels))[:most]
    train = splits.take(experiment.train, np.sort(some))
    unseen, found = load_left_out(config, most=most, shared=shared), []
    with resume.open_checkpoints(workdir, config) as checkpoints:
        for restore in (checkpoints.restore_best, checkpoints.restore_latest):
            restored = restore(experiment.state) if checkpoints.steps() else None
            if restored is None:
                return None
            weights = experiment.parallel.replicate(state_lib.evaluated_weights(restored[0]))
            for split in (train, experiment.val, unseen):
                figures = experiment.evaluate(weights, split) if split else None
                found.append(figures and Accuracy(figures["accuracy"], figures["examples"]))
    return CleanPass(*found)


def records(workdir: Path) -> list[dict]:
    """The log records of the trial in `workdir`."""
    return read_records(workdir / workdir_lib.METRICS)
