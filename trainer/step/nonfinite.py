"""NaN and Inf in the loss, the gradient or the update: the step is skipped, or an error names the likely cause.

`config.guard.on_non_finite` is the policy. "stop": the run ends with an error that names the window, the last good
checkpoint and the likely cause. "skip": the update of that step is not applied; more than `max_times` in a row end the
run. "rollback": the run goes back to the last evaluated checkpoint and on with the learning rate times `lr_factor`, at
most `max_times` (`run.rollback`). A run that was killed and resumed does the same as one that was not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from linseed.trainer.errors import NonFiniteError
from linseed.trainer.step import metrics

ON_NON_FINITE = ("rollback", "skip", "stop")

LOWER = "lower config.optimizer.lr, lengthen config.schedule.warmup_epochs or set config.optimizer.clip_norm"

# A gradient norm of this many times the median counts as grown.
_GROWN = 4.0


def skipping(train_step: Callable) -> Callable:
    """`train_step`, but a step whose loss, gradient or update is not finite changes nothing in the state but `step`.

    All devices decide alike, because they share the metrics. The optimizer does not count a skipped step, so that its
    schedule is late by the number of skipped steps.

    `optax.apply_if_finite` would not do: it looks at the gradient alone, leaves NaN in the BatchNorm statistics and
    the moving average, and applies the NaN once its limit is reached.
    """

    @functools.wraps(train_step)
    def guarded(state, batch):
        updated, step_metrics = train_step(state, batch)
        finite = functools.reduce(jnp.logical_and, [jnp.isfinite(step_metrics[name]) for name in metrics.FINITE])
        result = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        return result.replace(step=updated.step), step_metrics

    return guarded


def bad_in_a_row(steps: Sequence[Mapping[str, np.ndarray]], *, before: int) -> list[int]:
    """For each step the number of bad steps in a row that end with it. before: how many end before the first."""
    counts = []
    for step in steps:
        before = 0 if metrics.is_finite(step) else before + 1
        counts.append(before)
    return counts


def what_is_bad(step: Mapping[str, np.ndarray]) -> str:
    """Which of loss, gradient and update, in this order, is the first that is not finite."""
    names = {"loss": "the loss", "grad_norm": "the gradient", "update_ratio": "the update"}
    return next(names[name] for name in metrics.FINITE if not np.isfinite(step[name]))


def likely_cause(steps: Sequence[Mapping[str, np.ndarray]], *, precision: str) -> str:
    """A sentence that says why the last of `steps` is not finite, as the steps before it show, and what to change.

    steps: the metrics of consecutive steps, all finite but the last.
    """
    bad = steps[-1]
    norms, ratios = ([float(step[name]) for step in steps[:-1]] for name in ("grad_norm", "update_ratio"))
    data = "check the images and labels of that batch (config.data.normalize, config.data.std)"
    if np.isfinite(bad["loss"]) and np.isfinite(bad["grad_norm"]):
        return "The loss and the gradient were finite, the update was not: raise config.optimizer.eps, or " + LOWER
    if ratios and max(ratios[-3:]) > 1.0:
        return f"The updates had grown to {max(ratios[-3:]):.2g} times the parameters: {LOWER}"
    if norms and norms[-1] > _GROWN * np.median(norms):
        return f"The gradient's norm had grown from {np.median(norms):.2g} to {norms[-1]:.2g}: {LOWER}"
    if precision != "float32" and np.isfinite(bad["loss"]):
        return f"The loss was finite, the gradient was not: try config.precision='float32', or {LOWER}"
    if len(norms) < 3:
        return f"There are too few steps before it to tell why: {LOWER}; if that does not help, {data}"
    return f"It came suddenly, the gradient's norm was {norms[-1]:.2g} just before: {data}; if they are fine, {LOWER}"


def non_finite(what: str, *, step: int, window: tuple[int, int], cause: str, good: Sequence[int]) -> NonFiniteError:
    """The error that says: `what` of `step` is not finite.

    window: first and last step of the log window. cause: see `likely_cause`. good: the steps of sound checkpoints.
    """
    what = f"{what} of step {step}"
    checkpoint = f"the checkpoint of step {max(good)} is good" if good else "there is no checkpoint yet"
    return NonFiniteError(
        f"{what} is not finite (logged window: steps {window[0]} to {window[1]}); {checkpoint}. {cause}; then start in "
        "a new --workdir",
        what=what,
        step=step,
    )
