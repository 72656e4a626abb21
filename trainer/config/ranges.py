"""What each key of a config may be: a type and a range.

`FIELDS` are the plain fields, by their dotted key; `PARAMETERS` those of a table's entries, by name, the same in every
section. A parameter with a new name gets its range here.
"""

import math
from collections.abc import Callable
from typing import Any

from linseed.trainer.data.lazy import TRAIN_CROPS
from linseed.trainer.data.placement import PLACEMENTS
from linseed.trainer.data.stats import NORMALIZERS
from linseed.trainer.optim import rules
from linseed.trainer.optim.chain import CLIPS
from linseed.trainer.runtime.data_parallel import BACKENDS
from linseed.trainer.runtime.onednn import CONVOLUTIONS
from linseed.trainer.step.nonfinite import ON_NON_FINITE
from linseed.trainer.step.remat import REMAT
from linseed.trainer.step.tta import VIEWS

_LONGEST = 1e12  # the longest duration, in any unit
_LARGEST = 3.4e38  # of float32, in which all is computed

# A check returns what the value should have been, or None if it is right.
Check = Callable[[Any], str | None]


def _number(low=-math.inf, high=math.inf, *, above=False, below=False) -> Check:
    """A finite number in [low, high]; `above` and `below` leave out the ends."""
    interval = f"{'(' if above else '['}{low:g}, {high:g}{')' if below or math.isinf(high) else ']'}"

    def check(value):
        right_type = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right_type or not abs(value) <= _LARGEST:  # nor infinite, nor NaN
            return f"a number in {interval}"
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        return None if inside else f"in {interval}"

    return check


def _integer(low, high=math.inf) -> Check:
    def check(value):
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return None
        return f"a whole number, at least {low}" + ("" if math.isinf(high) else f" and at most {high:g}")

    return check


def _one_of(*names) -> Check:
    return lambda value: None if value in names else f"one of {', '.join(map(repr, names))}"


def text(value):
    return None if isinstance(value, str) else "a string"


def _numbers(value):
    ok = isinstance(value, (tuple, list)) and all(_number()(item) is None for item in value)
    return None if ok else "a tuple of numbers, () for none"


def _rules(value):
    if not isinstance(value, (tuple, list)) or not value or not all(isinstance(rule, str) for rule in value):
        return "a tuple of strings such as ('rest:',)"
    for rule in value:
        rules.parse(rule)
    return None


def _milestones(value):
    ok = isinstance(value, (tuple, list)) and value and all(_number(0)(item) is None for item in value)
    return None if ok else "a tuple of numbers, each at least 0"


def _widths(value):
    ok = isinstance(value, (tuple, list)) and value and all(_integer(1)(item) is None for item in value)
    return None if ok else "a tuple of whole numbers, each at least 1"


FIELDS: dict[str, Check] = {
    "seed": _integer(0, 2**31 - 1),
    "precision": _one_of("float32", "bfloat16"),
    "convolution": _one_of(*CONVOLUTIONS),
    "parallel.backend": _one_of(*BACKENDS),
    "data.batch_size": _integer(0, 2**20),  # 0: all of the train split, in one batch
    "data.val_fraction": _number(0, 1, above=True, below=True),
    "data.split_seed": _integer(0, 2**31 - 1),
    "data.train_examples": _integer(0),  # 0: all of the train split
    "data.placement": _one_of(*PLACEMENTS),
    "data.augment": text,
    "data.normalize": _one_of(*NORMALIZERS),
    "data.mean": _numbers,
    "data.std": _numbers,
    "optimizer.lr": _number(0, above=True),
    "optimizer.clip_norm": _number(0),
    "optimizer.clip": _one_of(*CLIPS),
    "optimizer.lr_per_batch": _integer(0),
    "optimizer.rules": _rules,
    "schedule.warmup_steps": _number(0, _LONGEST),
    "horizon.steps": _number(0, _LONGEST, above=True),
    "accumulation_parts": _integer(1),
    "remat": _one_of(*REMAT),
    "label_smoothing": _number(0, 1, below=True),
    "ema_decay": _number(0, 1, below=True),
    "eval.every_steps": _number(0, _LONGEST, above=True),
    "eval.batch_size": _integer(1, 2**20),
    "eval.views": _one_of(*VIEWS),
    "early_stopping.patience": _integer(0),
    "early_stopping.min_delta": _number(0),
    "checkpoint.keep_latest": _integer(1),
    "guard.on_non_finite": _one_of(*ON_NON_FINITE),
    "guard.max_times": _integer(1),
    "guard.lr_factor": _number(0, 1, above=True),
    "guard.watchdog_minutes": _number(0, 1e5),  # 0: off
    "log_every_steps": _integer(1),
    "steps_per_call": _integer(1),
}

INITS = (
    "auto",
    "dirac",
    "kaiming_normal",
    "kaiming_normal_fan_out",
    "kaiming_uniform",
    "kaiming_uniform_fan_out",
    "lecun_normal",
    "orthogonal",
    "unit_uniform",
    "xavier_normal",
    "xavier_uniform",
)

PARAMETERS: dict[str, Check] = {
    "activation": _one_of("elu", "gelu", "leaky_relu", "maxout", "prelu", "relu", "sigmoid", "silu", "tanh"),
    "adam_params": text,
    "alpha": _number(0, above=True),
    "at_steps": _milestones,
    "b1": _number(0, 1, below=True),
    "b2": _number(0, 1, below=True),
    "beta": _number(0),
    "channels": _integer(1),
    "class_weights": _numbers,
    "clip_threshold": _number(0, above=True),
    "cycle_factor": _number(1),
    "cycle_steps": _number(0, _LONGEST, above=True),
    "data_dir": text,
    "dataset": text,
    "decay": _number(0, 1, above=True),
    "decay_rate": _number(0, 1, above=True),
    "div_factor": _number(0, above=True),
    "drop_path": _number(0, 1, below=True),
    "dropout": _number(0, 1, below=True),
    "eps": _number(0, above=True),
    "examples": _integer(1),
    "factor": _number(0, 1, above=True, below=True),
    "final_div_factor": _number(0, above=True),
    "head_init": _one_of(*INITS),
    "image_size": _integer(0),
    "init": _one_of(*INITS),
    "logit_scale": _number(0, above=True),
    "max_linesearch_steps": _integer(1),
    "memory_size": _integer(1),
    "min_dim_size_to_factor": _integer(1),
    "momentum": _number(0, 1, below=True),
    "nesterov_momentum": _number(0, 1, below=True),
    "nesterov_params": text,
    "newton_schulz_steps": _integer(1),
    "norm_eps": _number(0, above=True),
    "norm_momentum": _number(0, 1, below=True),
    "normalization": _one_of("batch", "group", "layer", "none"),
    "num_classes": _integer(2),
    "num_examples": _integer(1),
    "on_bad_image": _one_of("error", "skip"),
    "path": text,
    "patience": _integer(1),
    "rho": _number(0, above=True),
    "rise_steps": _number(0, _LONGEST, above=True),
    "resize": _integer(1),
    "root": text,
    "rtol": _number(0, above=True),
    "seed": _integer(0, 2**31 - 1),
    "slow_rate": _number(0, 1, above=True),
    "split_seed": _integer(0, 2**31 - 1),
    "stem": _one_of("cifar", "imagenet"),
    "stem_bias_range": _number(0),
    "stem_width": _integer(1),
    "strength": _number(0),
    "sync_steps": _integer(1),
    "test_fraction": _number(0, 1, above=True, below=True),
    "test_split": text,
    "timescale_steps": _number(0, _LONGEST, above=True),
    "train_crop": _one_of(*TRAIN_CROPS),
    "train_split": text,
    "trust_coefficient": _number(0, above=True),
    "weight_decay": _number(0),
    "widths": _widths,
    "window_steps": _number(0, _LONGEST, above=True),
    "workers": _integer(0, 256),
}
