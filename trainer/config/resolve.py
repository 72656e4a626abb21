"""A config completed and checked: what an experiment states, and the defaults of all that it does not.

`resolve` runs before any device is touched. A plain key takes its default from configs/base.py; a parameter of an
entry, such as an optimiser's momentum, takes the default that stands beside the entry. The result names every key, so
that `config.json` shows all that ran, and runs the same again after a default has changed.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from linseed import ranges
from linseed.configs import base
from linseed.trainer.config import plugins
from linseed.trainer.config.canonical import flatten, nested
from linseed.trainer.config.fields import FIELDS
from linseed.trainer.config.sections import DURATIONS, REQUIRED, TABLES, Parameter, in_steps, parameters
from linseed.trainer.data import augment
from linseed.trainer.errors import ConfigError, unknown_name
from linseed.trainer.optim import rules
from linseed.trainer.optim.schedules import UNITS


def resolve(config: Mapping | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` with every key, in the types of their annotations, locked. A complete config comes back as it is.

    Raises ConfigError, one line that names the cure, for a config that cannot run: an unknown key or name, a value out
    of its range, a parameter that is missing and has no default, keys that exclude each other.
    """
    given = dict(flatten(config))
    plugins.check_loaded(_converted("plugins", given.get("plugins", ()), FIELDS["plugins"]))
    known = _known(given)
    values: dict[str, Any] = {}
    written = {}  # canonical key -> the key that was given
    for key, value in given.items():
        canonical = in_steps(key)
        if canonical not in known:
            raise ConfigError(_unknown_key(key, given, known))
        if canonical in written:
            raise ConfigError(f"config.{written[canonical]} and config.{key} are one duration; keep one of them")
        written[canonical] = key
        values[key] = _converted(key, value, known[canonical].annotation)
    for canonical, (annotation, (key, default)) in known.items():
        if canonical in written:
            continue
        if default is REQUIRED:
            unit = f", or in another unit ({', '.join(UNITS)})" if canonical.endswith("steps") else ""
            raise ConfigError(
                f"config.{canonical} is missing{unit if canonical.split('.')[0] in DURATIONS else ''}; set it, such as "
                f"--config.{canonical}=VALUE"
            )
        values[key] = _converted(key, default, annotation)
    augment.parse(values["data.augment"])
    for rule in values["optimizer.rules"]:
        rules.parse(rule)
    _check_together(values)
    values["plugins"] = plugins.used(values)
    return nested(values).lock()


def departures(config: Mapping | ml_collections.ConfigDict) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of each key of a complete config that is not the default; None where there is none.

    The default of a name is that of configs/base.py, that of another key the one of the entry that is named.
    """
    given, names = dict(flatten(config)), {f"{section}.name" for section in TABLES}
    on_base, known = dict(flatten(base.get_config())), _known(given)
    found = []
    for key, value in given.items():
        annotation, (standard, default) = known[in_steps(key)]
        default = on_base[key] if key in names else default
        default = None if default is REQUIRED or key != standard else _converted(key, default, annotation)
        if value != default:
            found.append((key, value, default))
    return found


def _known(given) -> dict[str, Parameter]:
    """Each key that `given` may have, durations in steps, with its annotation and its default."""
    defaults = {in_steps(key): (key, value) for key, value in flatten(base.get_config())}
    known = {key: Parameter(annotation, defaults.get(key, (key, REQUIRED))) for key, annotation in FIELDS.items()}
    for section, table in TABLES.items():
        key = f"{section}.name"
        name = given.get(key, defaults[key][1])
        if not isinstance(name, str) or name not in table:
            raise ConfigError(unknown_name(f"config.{key}", name, table))
        known[key] = Parameter(str, (key, name))
        known |= parameters(section, name)
    return known


def _unknown_key(key, given, known):
    """The line for a key that there is not: the nearest of its section."""
    section = key.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == section]
    name = given.get(f"{section}.name")
    entry = f"{section} '{name}': " if name else ""
    return entry + unknown_name("config key", key, beside or known)


def _converted(key, value, annotation):
    try:
        return ranges.convert(value, annotation)
    except ranges.RangeError as error:
        raise ConfigError(f"config.{key}={value!r} should be {error}") from None


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
    if values["data.mean"] and values["data.normalize"] not in ("channel_mean_std", "pretrained"):
        raise ConfigError("config.data.mean and config.data.std need config.data.normalize='channel_mean_std'")
    if any(std <= 0 for std in values["data.std"]):
        raise ConfigError(f"config.data.std={values['data.std']!r} should be above 0")
