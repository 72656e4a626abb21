"""What to do next, as flags of scripts.train, from the config of the run that went wrong."""

from collections.abc import Mapping
from typing import Any


def flag(key: str, value: Any) -> str:
    """The flag that sets `key`, dotted, to `value`."""
    return f"--config.{key}={f'{value:.3g}' if isinstance(value, float) else value}"


def rate(config: Mapping[str, Any], *, times: float) -> str:
    """`times` the learning rate."""
    return flag("optimizer.lr", config["optimizer"]["lr"] * times)


def better_start(config: Mapping[str, Any]) -> str:
    """Initial weights that fit the layers, and a norm to hold the scale, as far as the config has not got them."""
    model = config["model"]
    flags = [flag("model.kernel_init", "auto")] if model.get("kernel_init", "auto") != "auto" else []
    flags += [flag("model.normalization", "batch")] if model.get("normalization") == "none" else []
    return " ".join(flags) or "the initial scale of the weights, and a warm-up"


def longer(config: Mapping[str, Any]) -> str:
    """Twice the run, in the unit of its config."""
    ((unit, value),) = config["horizon"].items()
    return flag(f"horizon.{unit}", 2 * value)
