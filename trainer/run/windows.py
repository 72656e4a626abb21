"""Windows: the log summarises the steps of one, and the loop hands one at a time from the devices to the recorder."""

from typing import NamedTuple

import jax

from linseed.trainer.step.state import TrainState


class Windows(NamedTuple):
    """The windows of a run. One ends at each log, at each evaluation, and at the end of the run.

    total_steps: the last step. shift: as in `Progress`; steps + shift are multiples of the intervals where windows end.
    """

    log_every: int
    eval_every: int
    total_steps: int
    shift: int = 0

    def end(self, step: int) -> int:
        """The last step of the window of step `step` + 1."""
        place = step + self.shift
        return min(self.total_steps, *(step - place % every + every for every in (self.log_every, self.eval_every)))

    def begun(self, step: int) -> int:
        """How many of the steps up to `step` are in a window that has not ended."""
        place = step + self.shift
        return min(place % self.log_every, place % self.eval_every)

    def is_evaluated(self, end: int) -> bool:
        """Whether a validation ends the window whose last step is `end`."""
        return (end + self.shift) % self.eval_every == 0 or end == self.total_steps


class Window(NamedTuple):
    """Steps start + 1 to step, on the devices and perhaps still under way.

    metrics: as in the carry of `multi_step.make_train_steps`, a copy. call: what the call of the last step returned.
    evaluation, state: the sums of a validation and a copy of the state, None where none ends the window.
    ended: when the last step was done (`time.monotonic`), None where that is when the metrics are read.
    """

    start: int
    step: int
    metrics: jax.Array
    call: jax.Array | None = None
    evaluation: list | None = None
    state: TrainState | None = None
    ended: float | None = None
