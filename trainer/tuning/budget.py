"""What a study may cost: in time, or in steps, which every machine counts alike."""

import re
from typing import NamedTuple

from trainer.errors import ConfigError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Budget(NamedTuple):
    """seconds: of wall time, or None; steps: train steps, or None. One of the two is given."""

    seconds: float | None
    steps: int | None
    text: str


def parse(text: str) -> Budget:
    """`"90s"`, `"30m"`, `"1.5h"` or `"4000steps"`. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|steps)", text.strip())
    if not found or not float(found[1]):
        raise ConfigError(f"--budget={text} should be a time such as 90s, 30m or 2h, or a number of steps: 4000steps")
    amount, unit = float(found[1]), found[2]
    if unit == "steps":
        return Budget(None, int(amount), text)
    return Budget(amount * _SECONDS[unit], None, text)
