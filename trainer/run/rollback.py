"""Rollbacks: a run goes back to a checkpoint after NaN or Inf and goes on at a lower learning rate."""

import json
from pathlib import Path

from linseed.trainer import checksum, files
from linseed.trainer.errors import NonFiniteError, WorkdirError
from linseed.trainer.run.checkpoint import Checkpoints


class Rollbacks:
    """The rollbacks of a run, in `path`: a JSON object a line, with `step` (not finite) and `to` (the checkpoint's).

    A run that starts at a step forgets the rollbacks to later ones. Each line has a checksum. Where one does not match,
    the methods raise WorkdirError, because the learning rate would be wrong.
    """

    def __init__(self, path: Path, *, on_non_finite: str, max_times: int, lr_factor: float):
        """As in `config.guard`. Only "rollback" goes back; the others keep the learning rate of earlier rollbacks."""
        self._path, self._max_times, self._lr_factor = path, max_times, lr_factor
        self._rolls = on_non_finite == "rollback"

    def lr_scale(self, step: int) -> float:
        """The factor on the learning rate of a run that goes on after `step`. Forgets the rollbacks to later steps."""
        lines = self._read()
        past = [line for line in lines if line["to"] <= step]
        if len(past) < len(lines):
            self._write(past)
        return self._lr_factor ** len(past)

    def forget(self):
        """Forgets all rollbacks, for a run that starts anew."""
        files.delete(self._path)

    def roll_back(self, checkpoints: Checkpoints, error: NonFiniteError) -> str:
        """Drops the checkpoints after the last evaluated one, records the rollback, and returns a line that says so.

        Raises `error` where the run may not go back, or not once more.
        """
        lines = self._read()
        if not self._rolls:
            raise error
        if len(lines) >= self._max_times:
            raise NonFiniteError(f"after {len(lines)} rollbacks {error}", what=error.what, step=error.step) from error
        to = max(checkpoints.evaluated_steps(), default=0)
        checkpoints.drop_after(to)  # first, so that a run killed here comes to the same error again
        lines = [*lines, {"step": error.step, "to": to}]
        self._write(lines)
        scale = self._lr_factor ** len(lines)
        return (
            f"rollback {len(lines)} of {self._max_times}: {error.what} is not finite; back to step {to:,}, on with "
            f"{scale:g} times the learning rate"
        )

    def _read(self):
        content = files.read(self._path)
        lines = [checksum.loads(line) for line in (content or b"").splitlines()]
        if content is not None and (not lines or None in lines):
            raise WorkdirError(
                f"{self._path} is damaged, and the learning rate depends on it; put back a copy, or delete it to go on "
                "at config.optimizer.lr"
            )
        return lines

    def _write(self, lines):
        if not lines:
            self.forget()
            return
        files.write(self._path, "".join(json.dumps(checksum.seal(line)) + "\n" for line in lines))
