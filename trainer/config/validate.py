"""The config's contract: every key is there and in its range, and what may not be combined is not.

`validate` runs before any device is touched. A config has plain fields (`ranges.FIELDS`) and parts: sections
that name an entry of a table, and whose other keys are that entry's keyword-only parameters, so that
a new entry needs no line here. The ranges of parameters are in `ranges.PARAMETERS`, by name.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from linseed.trainer.config.ranges import FIELDS, PARAMETERS, text
from linseed.trainer.data import augment
from linseed.trainer.data.augment.mixing import MIXING
from linseed.trainer.data.sources import SOURCES
from linseed.trainer.errors import ConfigError, unknown_name
from linseed.trainer.optim.optimizers import OPTIMIZERS
from linseed.trainer.optim.regularizers import REGULARIZERS
from linseed.trainer.optim.schedules import SCHEDULES, UNITS
from linseed.trainer.step.data_init import DATA_INITS
from linseed.trainer.step.losses import LOSSES

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
    values = dict(flatten(config))
    checks = dict(FIELDS)
    required = set(FIELDS)
    for section, table in {**TABLES, "model": models}.items():
        name = values.get(f"{section}.name")
        if name is None:
            raise ConfigError(f"config.{section}.name is missing; known: {', '.join(sorted(table))}")
        if not isinstance(name, str) or name not in table:
            raise ConfigError(unknown_name(f"config.{section}.name", name, table))
        checks[f"{section}.name"] = text
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


def flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
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
    old, new = (dict(flatten(json.loads(to_json(config)))) for config in (old, new))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in changed]
