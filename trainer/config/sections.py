"""The sections of a config that name an entry of a table: `model`, `optimizer`, `data.source` ...

Their other keys are the entry's keyword-only parameters. A new entry, or a new parameter, needs no line here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from linseed.models import MODELS
from linseed.trainer.config.fields import FIELDS
from linseed.trainer.data.augment import OPS
from linseed.trainer.data.augment.mixing import MIXING
from linseed.trainer.data.sources import SOURCES
from linseed.trainer.errors import ConfigError
from linseed.trainer.optim.optimizers import DEFAULT_LR, OPTIMIZERS
from linseed.trainer.optim.regularizers import REGULARIZERS
from linseed.trainer.optim.schedules import DEFAULT_DURATIONS, SCHEDULES, UNITS
from linseed.trainer.step.data_init import DATA_INITS
from linseed.trainer.step.losses import LOSSES

# The section, and the table that its name is looked up in.
TABLES: dict[str, dict[str, Callable]] = {
    "data.source": SOURCES,
    "data.mix": MIXING,
    "data_init": DATA_INITS,
    "loss": LOSSES,
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "regularizer": REGULARIZERS,
    "schedule": SCHEDULES,
}
# All tables that a plugin may add to, by the name that they have in its module.
PLUGIN_TABLES: dict[str, dict[str, Callable]] = {
    "DATA_INITS": DATA_INITS,
    "LOSSES": LOSSES,
    "MIXING": MIXING,
    "MODELS": MODELS,
    "OPS": OPS,
    "OPTIMIZERS": OPTIMIZERS,
    "REGULARIZERS": REGULARIZERS,
    "SCHEDULES": SCHEDULES,
    "SOURCES": SOURCES,
}

# Sections whose keys that end in steps may end in any other unit: `warmup_epochs`, `at_percent`.
DURATIONS = ("eval", "horizon", "schedule")

# Parameters that the code supplies, and a config therefore does not.
SUPPLIED = {
    "model": ("num_classes", "compute", "parent", "name"),
    "schedule": ("lr", "warmup_steps", "decay_steps"),
    "loss": ("label_smoothing",),
}
REQUIRED = inspect.Parameter.empty


class Parameter(NamedTuple):
    """A key of an entry's section. default: the key and the value that stand in for it, REQUIRED where none can."""

    annotation: Any
    default: Any


def parameters(section: str, name: str) -> dict[str, Parameter]:
    """The parameters of the entry `name` of a section's table, durations in steps, as dotted keys.

    Raises ConfigError for a parameter without a range, which only a new entry can have.
    """
    entry = TABLES[section][name]
    fixed = entry.keywords if isinstance(entry, functools.partial) else {}  # what a partial fixes is no parameter
    found = {}
    for parameter in inspect.signature(entry).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in (*fixed, *SUPPLIED.get(section, ())):
            continue
        if parameter.annotation is parameter.empty:
            raise ConfigError(
                f"the parameter '{parameter.name}' of {section} '{name}' has no range; annotate it at its definition: "
                f"{parameter.name}: Annotated[int, Between(1, 100)] (see linseed.ranges)"
            )
        key = f"{section}.{parameter.name}"
        found[key] = Parameter(parameter.annotation, (key, parameter.default))
    if section == "schedule":
        for key, value in DEFAULT_DURATIONS.get(name, {}).items():
            key = f"{section}.{key}"
            found[in_steps(key)] = found[in_steps(key)]._replace(default=(key, value))
    if section == "optimizer":
        found["optimizer.lr"] = Parameter(FIELDS["optimizer.lr"], ("optimizer.lr", DEFAULT_LR.get(name, 1e-3)))
    return found


def in_steps(key: str) -> str:
    """`schedule.warmup_epochs` as `schedule.warmup_steps`: the key under which a duration is known."""
    section, _, name = key.partition(".")
    unit = name.rpartition("_")[2]
    return key.removesuffix(unit) + "steps" if section in DURATIONS and unit in UNITS else key
