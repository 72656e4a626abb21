"""Remedies as flags of scripts.train, from the config of the run that went wrong."""

from collections.abc import Mapping
from typing import Any

LATER = "--config.schedule.name=cosine, or a later end of the schedule"


def flag(key: str, value: Any) -> str:
    """The flag that sets the dotted `key` to `value`."""
    return f"--config.{key}={f'{value:.3g}' if isinstance(value, float) else value}"


def rate(config: Mapping[str, Any], *, times: float) -> str:
    """The flag for `times` the learning rate."""
    return flag("optimizer.lr", config["optimizer"]["lr"] * times)


def better_start(config: Mapping[str, Any]) -> str:
    """Flags for automatic initial weights and batch normalisation, as far as the config lacks them."""
    model = config["model"]
    flags = [flag("model.kernel_init", "auto")] if model.get("kernel_init", "auto") != "auto" else []
    flags += [flag("model.normalization", "batch")] if model.get("normalization") == "none" else []
    return " ".join(flags) or "check the initial scale of the weights, and add a warm-up"


def longer(config: Mapping[str, Any]) -> str:
    """The flag for a run twice as long, in the unit of its config."""
    ((unit, value),) = config["horizon"].items()
    return flag(f"horizon.{unit}", 2 * value)
