"""What a run does about a loss, a gradient or an update that is not finite: stop and say why, skip, or roll back.

"stop": the run ends and names the window, the last good snapshot and the likely cause. "skip": that step's update is
not applied; more than `max_times` in a row end the run. "rollback": back to the last evaluated snapshot and on with the
rate times `lr_factor`, at most `max_times`. A run that is killed and resumed does in each case what it would have done.
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

# What has grown to this many times its median was on its way.
_GROWN = 4.0


def skipping(train_step: Callable) -> Callable:
    """`train_step`, but a step whose loss, gradient or update is not finite changes nothing in the state but `step`.

    The same on all devices, since the metrics are. `optax.apply_if_finite` looks at the gradient alone, leaves the
    BatchNorm statistics and the moving average spoiled, and at its limit lets the NaN in. The optimiser's
    count of updates, and with it the schedule, stays behind by the steps skipped.
    """

    @functools.wraps(train_step)
    def guarded(state, batch):
        after, found = train_step(state, batch)
        sound = functools.reduce(jnp.logical_and, [jnp.isfinite(found[name]) for name in metrics.FINITE])
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
        return kept.replace(step=after.step), found

    return guarded


def bad_in_a_row(steps: Sequence[Mapping[str, np.ndarray]], *, before: int) -> list[int]:
    """For each step how many in a row, up to it, were not finite; `before` were not just before the first."""
    counts = []
    for step in steps:
        before = 0 if metrics.is_finite(step) else before + 1
        counts.append(before)
    return counts


def what_is_bad(step: Mapping[str, np.ndarray]) -> str:
    """The first in the chain loss, gradient, update that is not finite."""
    names = {"loss": "the loss", "grad_norm": "the gradient", "update_ratio": "the update"}
    return next(names[name] for name in metrics.FINITE if not np.isfinite(step[name]))


def likely_cause(steps: Sequence[Mapping[str, np.ndarray]], *, precision: str) -> str:
    """One sentence on why the last of `steps` is not finite, from the steps before it, and what to change.

    steps: the metrics of some steps in order, all finite but the last.
    """
    bad = steps[-1]
    norms, ratios = ([float(step[name]) for step in steps[:-1]] for name in ("grad_norm", "update_ratio"))
    data = "look at the images and labels of that batch (config.data.normalize, config.data.std)"
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
    return f"It came suddenly, the gradient's norm was {norms[-1]:.2g} just before: {data}; if they are sound, {LOWER}"


def non_finite(what: str, *, step: int, window: tuple[int, int], cause: str, good: Sequence[int]) -> NonFiniteError:
    """The error: `what` of `step`, in the log `window` (first and last step). good: the steps of sound snapshots."""
    what = f"{what} of step {step}"
    kept = f"the snapshot of step {max(good)} is sound" if good else "there is no snapshot yet"
    return NonFiniteError(
        f"{what} is not finite (logged window: steps {window[0]} to {window[1]}); {kept}. {cause}; then start in a new "
        "--workdir",
        what=what,
        step=step,
    )
