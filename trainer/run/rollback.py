"""How often a run went back to a snapshot because something was not finite, and the rate that it went on with."""

import json
from pathlib import Path

from linseed.trainer import checksum
from linseed.trainer.errors import NonFiniteError, WorkdirError
from linseed.trainer.run import workdir as workdir_lib
from linseed.trainer.run.checkpoint import Snapshots


class Rollbacks:
    """How often a run went back, in `path`: one JSON object a rollback, `step` (not finite) and `to` (gone on from).

    A rollback belongs to the run from the step that it went to: what is noted of later ones is dropped when a run
    starts before them. Each line has a checksum over itself, and where one does not match all raise WorkdirError: the
    rate would be another.
    """

    def __init__(self, path: Path, *, on_non_finite: str, max_times: int, lr_factor: float):
        """As in the config's section `guard`; only "rollback" goes back, the rate of earlier rollbacks stays."""
        self._path, self._max_times, self._lr_factor = path, max_times, lr_factor
        self._rolls = on_non_finite == "rollback"

    def lr_scale(self, step: int) -> float:
        """What the rate is multiplied by in a run that goes on after `step`. Forgets the rollbacks to later steps."""
        lines = self._read()
        kept = [line for line in lines if line["to"] <= step]
        if len(kept) < len(lines):
            self._write(kept)
        return self._lr_factor ** len(kept)

    def forget(self):
        """For a run that begins anew."""
        self._path.unlink(missing_ok=True)

    def roll_back(self, snapshots: Snapshots, error: NonFiniteError) -> str:
        """Goes back to the last evaluated snapshot, or to the beginning, and notes it; returns a line that says so.

        Raises `error` where the run may not go back, or not once more.
        """
        lines = self._read()
        if not self._rolls:
            raise error
        if len(lines) >= self._max_times:
            raise NonFiniteError(f"after {len(lines)} rollbacks {error}", what=error.what, step=error.step) from error
        to = max(snapshots.evaluated_steps(), default=0)
        snapshots.drop_after(to)  # first: killed here, the run comes to the same error again
        lines = [*lines, {"step": error.step, "to": to}]
        self._write(lines)
        scale = self._lr_factor ** len(lines)
        return (
            f"rollback {len(lines)} of {self._max_times}: {error.what} is not finite; back to step {to:,}, on with "
            f"{scale:g} times the rate"
        )

    def _read(self):
        text = self._path.read_text(errors="replace") if self._path.exists() else None
        lines = [checksum.loads(line) for line in (text or "").splitlines()]
        if text is not None and (not lines or None in lines):
            raise WorkdirError(
                f"{self._path} is damaged, so that the rate to go on with is not known; put back a copy, or delete it "
                "to go on at the config's own rate"
            )
        return lines

    def _write(self, lines):
        if not lines:
            self.forget()
            return
        workdir_lib.write_whole(self._path, "".join(json.dumps(checksum.seal(line)) + "\n" for line in lines))
