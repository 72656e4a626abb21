"""The config's contract: every key, its type, its range, and what may not be combined.

`validate` runs before any device is touched. A config has plain fields (`FIELDS`) and parts: sections
that name an entry of a table, and whose other keys are that entry's keyword-only parameters, so that
a new entry needs no line here. Ranges of parameters are in `PARAMETERS`, by name.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from trainer import rules
from trainer.convolution import CONVOLUTIONS
from trainer.data import augment
from trainer.data.augment.mixing import MIXING
from trainer.data.feeds import PLACEMENTS
from trainer.data.lazy import TRAIN_CROPS
from trainer.data.sources import SOURCES
from trainer.data.stats import NORMALIZERS
from trainer.errors import ConfigError, unknown_name
from trainer.guard import ON_NON_FINITE
from trainer.losses import LOSSES
from trainer.optim import CLIPS, OPTIMIZERS
from trainer.parallel import BACKENDS
from trainer.regularizers import REGULARIZERS
from trainer.remat import REMAT
from trainer.schedules import SCHEDULES, UNITS
from trainer.views import VIEWS
from trainer.whitening import DATA_INITS

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


def _text(value):
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
    "data.augment": _text,
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
    "adam_params": _text,
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
    "data_dir": _text,
    "dataset": _text,
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
    "nesterov_params": _text,
    "newton_schulz_steps": _integer(1),
    "norm_eps": _number(0, above=True),
    "norm_momentum": _number(0, 1, below=True),
    "normalization": _one_of("batch", "group", "layer", "none"),
    "num_classes": _integer(2),
    "num_examples": _integer(1),
    "on_bad_image": _one_of("error", "skip"),
    "path": _text,
    "patience": _integer(1),
    "rho": _number(0, above=True),
    "rise_steps": _number(0, _LONGEST, above=True),
    "resize": _integer(1),
    "root": _text,
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
    "test_split": _text,
    "timescale_steps": _number(0, _LONGEST, above=True),
    "train_crop": _one_of(*TRAIN_CROPS),
    "train_split": _text,
    "trust_coefficient": _number(0, above=True),
    "weight_decay": _number(0),
    "widths": _widths,
    "window_steps": _number(0, _LONGEST, above=True),
    "workers": _integer(0, 256),
}

# Parts: the section, and the table its name comes from. Models are handed to `validate`.
TABLES: dict[str, Mapping[str, Callable]] = {
    "data.source": SOURCES,
    "data.mix": MIXING,
    "data_init": DATA_INITS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "regularizer": REGULARIZERS,
    "schedule": SCHEDULES,
}

# Sections whose keys ending in steps may end in any other unit: `warmup_epochs`, `at_percent`.
DURATIONS = ("eval", "horizon", "schedule")

# What the loop supplies, and a config therefore does not.
SUPPLIED = {
    "model": ("num_classes", "dtype", "axis_name", "convolution"),
    "schedule": ("lr", "warmup_steps", "decay_steps"),
    "loss": ("label_smoothing",),
}


def validate(config: Mapping, *, models: Mapping[str, Callable]):
    """Raises ConfigError, one line that names the cure, unless `config` can run.

    `models` is the table of models: name -> builder with keyword-only parameters.
    """
    values = dict(_flatten(config))
    checks = dict(FIELDS)
    required = set(FIELDS)
    for section, table in {**TABLES, "model": models}.items():
        name = values.get(f"{section}.name")
        if name is None:
            raise ConfigError(f"config.{section}.name is missing; known: {', '.join(sorted(table))}")
        if not isinstance(name, str) or name not in table:
            raise ConfigError(unknown_name(f"config.{section}.name", name, table))
        checks[f"{section}.name"] = _text
        for parameter in inspect.signature(table[name]).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in SUPPLIED.get(section, ()):
                checks[f"{section}.{parameter.name}"] = PARAMETERS[parameter.name]
                if parameter.default is parameter.empty:
                    required.add(f"{section}.{parameter.name}")
    seen = {}
    for key, value in values.items():
        canonical = _in_steps(key)
        if canonical not in checks:
            section = key.rpartition(".")[0]
            beside = [known for known in checks if known.rpartition(".")[0] == section]
            entry = f"{section} '{values[f'{section}.name']}': " if f"{section}.name" in values else ""
            raise ConfigError(entry + unknown_name("config key", key, beside or checks))
        if canonical in seen:
            raise ConfigError(f"config.{seen[canonical]} and config.{key} are one duration; keep one of them")
        seen[canonical] = key
        wanted = checks[canonical](value)
        if wanted:
            raise ConfigError(f"config.{key}={value!r} should be {wanted}")
    for key in sorted(required - seen.keys()):
        unit = f", or in another unit ({', '.join(UNITS)})" if key != key.removesuffix("steps") else ""
        raise ConfigError(f"config.{key} is missing{unit if key.split('.')[0] in DURATIONS else ''}")
    augment.parse(values["data.augment"])
    _check_together(values)


def _check_together(values):
    for unit in UNITS:
        warmup, horizon = values.get(f"schedule.warmup_{unit}"), values.get(f"horizon.{unit}")
        if warmup is not None and horizon is not None and warmup >= horizon:
            raise ConfigError(
                f"config.schedule.warmup_{unit}={warmup:g} is as long as the run, config.horizon.{unit}={horizon:g}; "
                "lower it"
            )
    full_batch = values["data.batch_size"] == 0
    if values["optimizer.name"] == "lbfgs" and not full_batch:
        raise ConfigError("config.optimizer.name='lbfgs' needs the whole loss; set config.data.batch_size=0")
    if values["optimizer.name"] == "lbfgs" and (values["data.augment"] or values["data.mix.name"] != "none"):
        raise ConfigError(
            "config.optimizer.name='lbfgs' needs the same loss each step; set config.data.augment='' and "
            "config.data.mix.name='none'"
        )
    if bool(values["data.mean"]) != bool(values["data.std"]):
        raise ConfigError("config.data.mean and config.data.std go together; give both, or () for both")
    if values["data.mean"] and values["data.normalize"] != "channel_mean_std":
        raise ConfigError("config.data.mean and config.data.std need config.data.normalize='channel_mean_std'")
    if any(std <= 0 for std in values["data.std"]):
        raise ConfigError(f"config.data.std={values['data.std']!r} should be above 0")


def _in_steps(key):
    """`schedule.warmup_epochs` as `schedule.warmup_steps`: the key under which a duration is checked."""
    section, _, name = key.partition(".")
    unit = name.rpartition("_")[2]
    return key.removesuffix(unit) + "steps" if section in DURATIONS and unit in UNITS else key


def _flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as canonical JSON: sorted keys, tuples as lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def sha256(config: ml_collections.ConfigDict) -> str:
    """sha256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """One `key: old -> new` for each key that differs."""
    old, new = (dict(_flatten(json.loads(to_json(config)))) for config in (old, new))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in changed]
