"""The plain keys of a config and their ranges. Their meanings and defaults stand in configs/base.py.

All other keys are parameters of an entry of a table, such as an optimiser: see `trainer.config.sections`.
"""

from typing import Annotated, Any

from linseed.models.layers import RUNNING_VARIANCES
from linseed.ranges import (
    AboveZero,
    BelowOne,
    Between,
    Count,
    Duration,
    Inside,
    Length,
    Natural,
    NonNegative,
    OneOf,
    Positive,
    PositiveDuration,
)
from linseed.trainer.data.placement import PLACEMENTS
from linseed.trainer.data.stats import NORMALIZERS
from linseed.trainer.optim.chain import CLIPS
from linseed.trainer.runtime.data_parallel import BACKENDS
from linseed.trainer.runtime.onednn import CONVOLUTIONS
from linseed.trainer.step.nonfinite import ON_NON_FINITE
from linseed.trainer.step.remat import REMAT
from linseed.trainer.step.scores import MONITORS
from linseed.trainer.step.tta import VIEWS

Numbers = tuple[Annotated[float, Between()], ...]
MostExamples = 2**20  # in one batch

# Dotted key -> annotation. Durations are listed in steps; a config may give them in any unit.
FIELDS: dict[str, Any] = {
    "seed": Natural,
    "head_init": Annotated[str, OneOf("random", "probe")],
    "plugins": tuple[str, ...],
    "pretrained": str,
    "precision": Annotated[str, OneOf("float32", "bfloat16")],
    "convolution": Annotated[str, OneOf(CONVOLUTIONS)],
    "deterministic": bool,
    "parallel.backend": Annotated[str, OneOf(BACKENDS)],
    "data.batch_size": Annotated[int, Between(0, MostExamples)],
    "data.val_fraction": Inside,
    "data.split_seed": Natural,
    "data.train_examples": Natural,
    "data.placement": Annotated[str, OneOf(PLACEMENTS)],
    "data.augment": str,
    "data.normalize": Annotated[str, OneOf(NORMALIZERS, "pretrained")],
    "data.mean": Numbers,
    "data.std": Numbers,
    "optimizer.lr": Positive,
    "optimizer.lr_per_batch": Natural,
    "optimizer.clip": Annotated[str, OneOf(CLIPS)],
    "optimizer.clip_norm": NonNegative,
    "optimizer.layer_decay": Annotated[float, Between(0, 1, above=True)],
    "optimizer.rules": Annotated[tuple[str, ...], Length(1)],
    "schedule.warmup_steps": Duration,
    "horizon.steps": PositiveDuration,
    "accumulation_parts": Count,
    "batch_norm.frozen": bool,
    "batch_norm.running_variance": Annotated[str, OneOf(RUNNING_VARIANCES)],
    "remat": Annotated[str, OneOf(REMAT)],
    "label_smoothing": BelowOne,
    "ema_decay": BelowOne,
    "eval.every_steps": PositiveDuration,
    "eval.batch_size": Annotated[int, Between(1, MostExamples)],
    "eval.monitor": Annotated[str, OneOf(MONITORS)],
    "eval.views": Annotated[str, OneOf(VIEWS)],
    "early_stopping.patience": Natural,
    "early_stopping.min_delta": NonNegative,
    "checkpoint.keep_latest": Count,
    "guard.on_non_finite": Annotated[str, OneOf(ON_NON_FINITE)],
    "guard.max_times": Count,
    "guard.lr_factor": AboveZero,
    "guard.watchdog_minutes": Annotated[float, Between(0, 1e5)],
    "log_every_steps": Count,
    "steps_per_call": Count,
}
