"""The space of a study: rate and decay, and further keys, `--search=KEY=LOW..HIGH` or `--search=KEY=VALUE,VALUE`.

A point is a value for each of some keys, as JSON: "lr" and "weight_decay", and further keys of the config by their own
names. A key that a point leaves out is as in the config.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from linseed.ranges import LARGEST
from linseed.trainer import programs
from linseed.trainer.config import changes
from linseed.trainer.config.canonical import flatten
from linseed.trainer.config.resolve import resolve
from linseed.trainer.config.sections import in_steps
from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import rules

Point = dict[str, Any]

_ZERO = 1e-12  # stored for 0 on a log axis
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(:\s*log\s*)?")
_FORM = "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE"

# Keys that programs depend on, and in which the trials of a study are all alike.
_ONE_FOR_ALL = ("data.mean", "data.std", "eval", "guard", "log_every_steps", "steps_per_call")

_AUGMENTATIONS = (  # of photos, from weak to strong
    "flip_lr(0.5)",
    "flip_lr(0.5)|color_jitter(0.2, 0.2, 0.2)",
    "flip_lr(0.5)|randaugment(2, 5)",
)


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included. log: drawn on a log axis. whole: integers alone."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def distribution(self) -> FloatDistribution:
        """Of the storage, which takes any number: rounds differ in their bounds of rate and decay."""
        return FloatDistribution(_ZERO, LARGEST, log=True) if self.log else FloatDistribution(-LARGEST, LARGEST)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def stored(self, value: float) -> float:
        return max(float(value), _ZERO) if self.log else float(value)

    def restored(self, stored: float) -> float:
        value = 0.0 if self.log and stored <= _ZERO else stored
        return round(value) if self.whole else value

    def draw(self, trial: optuna.Trial, key: str) -> float:
        """A value of `trial`, to three digits."""
        margin = 0.5 * self.whole  # so that the ends are as likely as the integers between them
        drawn = trial.suggest_float(key, self.low - margin, self.high + margin, log=self.log)
        rounded = round(drawn) if self.whole else float(f"{drawn:.3g}")
        return min(max(rounded, self.low), self.high)


class Choice(NamedTuple):
    """One of `values`, which are JSON; Optuna gets their text."""

    values: tuple[Any, ...]

    @property
    def distribution(self) -> CategoricalDistribution:
        return CategoricalDistribution([json.dumps(value) for value in self.values])

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def stored(self, value: Any) -> str:
        return json.dumps(value)

    def restored(self, stored: str) -> Any:
        return json.loads(stored)

    def draw(self, trial: optuna.Trial, key: str) -> Any:
        return json.loads(trial.suggest_categorical(key, self.distribution.choices))


Space = dict[str, Range | Choice]
RATE_AND_DECAY: Space = {key: Range(0.0, LARGEST, log=True) for key in ("lr", "weight_decay")}


def suited(config: ml_collections.ConfigDict) -> list[str]:
    """The `--search` of a complete config without one: what matters where all layers of a pre-trained network train."""
    if not config.pretrained or rules.any_frozen(config.optimizer.rules):
        return []
    [(unit, length)] = config.horizon.items()  # of a complete config
    augmentations = dict.fromkeys((config.data.augment, *_AUGMENTATIONS))
    return [
        "optimizer.layer_decay=0.65..1",
        f"data.augment={','.join(augmentations)}",
        f"horizon.{unit}={length / 3:.3g},{length}",
    ]


def read(texts: Sequence[str], config: ml_collections.ConfigDict) -> tuple[Space, list[dict[str, float]]]:
    """The further keys of `--search` flags with their values, and the horizons, shortest first: `{"epochs": 5.0}`, ...

    config: complete. Raises ConfigError, one line, for a value that its key does not allow, an unknown key, and a key
    in which the trials of a study cannot differ.
    """
    space: Space = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(f"--search={text} should read {_FORM}")
        _refuse_unsearchable(key)
        if in_steps(key) in map(in_steps, space):
            raise ConfigError(f"--search={key} is given twice; keep one of them")
        space[key] = _axis(key, values, config)
    for key in space:
        name = f"{key.rpartition('.')[0]}.name"
        if name in space and key != name:
            raise ConfigError(f"--search={key} is a parameter of one {name} alone; search one of the two")
    horizons = {key: space.pop(key) for key in list(space) if _is_horizon(key)}
    return space, [
        {key.partition(".")[2]: value} for key, choice in horizons.items() for value in sorted(choice.values)
    ]


def _is_horizon(key):
    return in_steps(key) == "horizon.steps"


def _refuse_unsearchable(key):
    for searched, flag in (("optimizer.lr", "--rates"), ("optimizer.weight_decay", "--decays")):
        if key == searched:
            raise ConfigError(f"--search={key} is always searched; set the grid of step 4 by {flag}")
    if key in ("model.name", "optimizer.name"):
        raise ConfigError(f"--search={key}: each has a learning rate of its own; run a study for each")
    is_one_for_all = not programs.matters(key) or any(f"{key}.".startswith(f"{other}.") for other in _ONE_FOR_ALL)
    if is_one_for_all and key != "head_init" and not _is_horizon(key):
        raise ConfigError(
            f"--search={key}: the trials of a study share images, batches, schedule and measure; compare its values by "
            "whole runs, `linseed train --judge=val`"
        )


def _axis(key, text, config):
    between = _RANGE.fullmatch(text)
    items = between.groups()[:2] if between else _items(text)
    values = [_checked(key, item, config) for item in items]
    if not between:
        if len(set(map(json.dumps, values))) < max(2, len(values)):
            raise ConfigError(f"--search={key}={text} should name at least two values, each once")
        return Choice(tuple(values))
    low, high = values
    if _is_horizon(key):
        raise ConfigError(
            f"--search={key}: each length is a final run of its own; name them, such as {key}={low},{high}"
        )
    if type(low) not in (int, float) or type(high) not in (int, float):
        raise ConfigError(f"--search={key}={text} is a range, and {key} is no number; name values: {key}=VALUE,VALUE")
    if not low < high or (between[3] and low <= 0):
        raise ConfigError(f"--search={key}={text} should rise from LOW to HIGH, with :log from above 0")
    return Range(low, high, log=bool(between[3]), whole=type(low) is int)


def _items(text):
    """The values of a list, which commas separate; those within brackets or quotes belong to a value."""
    items, inside, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = "" if character == quote else quote or character
        inside += not quote and (character in "([{") - (character in ")]}")
        if character == "," and not inside and not quote:
            items.append("")
        else:
            items[-1] += character
    return [item.strip() for item in items]


def _checked(key, text, config):
    """A value of `key` as `config` takes it, as JSON."""
    value = {key: changes.read(config, {key: text})[key]}
    # The final runs scale the schedule to their length, so that no warm-up is too long for one.
    unscheduled = {"schedule": {"name": "constant", "warmup_steps": 0}} if _is_horizon(key) else {}
    try:
        found = dict(flatten(resolve(changes.changed(config, unscheduled | value))))[key]
    except ConfigError as error:
        raise ConfigError(f"--search={key}: {error}") from None
    return json.loads(json.dumps(found))


def say(point: Point) -> str:
    """A point in words, on one line."""
    named = {"lr": "lr", "weight_decay": "decay"}
    return ", ".join(f"{named.get(key, key)} {say_value(value)}" for key, value in point.items())


def say_value(value: Any) -> str:
    """A value of a point: numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value) or "none"
