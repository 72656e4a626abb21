"""How often a run went back to a snapshot because something was not finite, and the rate that it went on with."""

import json
from pathlib import Path

from trainer import workdir as workdir_lib
from trainer.errors import NonFiniteError


class Rollbacks:
    """How often a run went back, in `path`: one JSON object a rollback, `step` (not finite) and `to` (gone on from).

    A rollback belongs to the run from the step that it went to: what is noted of later ones is dropped when a run
    starts before them.
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

    def allow(self, error: NonFiniteError):
        """Raises `error` unless the run may go back once more."""
        made = len(self._read())
        if not self._rolls:
            raise error
        if made >= self._max_times:
            raise NonFiniteError(f"after {made} rollbacks {error}", what=error.what, step=error.step) from error

    def note(self, error: NonFiniteError, *, to: int) -> str:
        """Notes a rollback to the snapshot of step `to`, 0 for the beginning; returns a line that says so."""
        lines = [*self._read(), {"step": error.step, "to": to}]
        self._write(lines)
        scale = self._lr_factor ** len(lines)
        return (
            f"rollback {len(lines)} of {self._max_times}: {error.what} is not finite; back to step {to:,}, on with "
            f"{scale:g} times the rate"
        )

    def _read(self):
        text = self._path.read_text() if self._path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _write(self, lines):
        workdir_lib.write_whole(self._path, "".join(json.dumps(line) + "\n" for line in lines))
