"""The chain of an optimiser: clipping, the links of `optimizers.OPTIMIZERS`, per-parameter rules, the learning rate.

The rate in the optimiser state is the rate that was applied. The peak rate and the weight decay are values in that
state (`with_hyperparams`), so that runs which differ in them share a compiled step.

Every chain is updated in one way, whatever it needs:

    tx.update(grads, opt_state, params, value=loss, grad=grads, value_fn=value_fn, grad_fn=grad_fn)

value: the mean loss of the batch at `params`, with regularisers, float32, the same on all devices; for `lbfgs` and the
schedule `plateau`. grad: `grads` again, before anything was done to it. value_fn: params -> value, on the same
batch with the same draws, differentiable (its gradient too averaged over devices); for `lbfgs`. grad_fn: params ->
grads, likewise; for `sam`. What a chain does not need it ignores, and a function that is not called costs nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from linseed.trainer.errors import ConfigError
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.optim import transforms
from linseed.trainer.optim.optimizers import OPTIMIZERS

# Gradient clipping, before decay: threshold -> link.
CLIPS = {
    "adaptive": optax.adaptive_grad_clip,  # |g| <= threshold max(|x|, 1e-3), by output unit: Brock et al. 2021
    "global_norm": optax.clip_by_global_norm,  # L2 norm of the whole gradient: Pascanu et al. 2013
    "value": optax.clip,  # each element
}


def make_tx(
    name: str,
    *,
    schedule: optax.Schedule | optax.schedules.StatefulSchedule,
    lr: float = 1.0,
    clip_norm: float,
    clip: str = "global_norm",
    rules: Sequence[str] = rules_lib.DEFAULT_RULES,
    total_steps: int | None = None,
    **kwargs,
) -> optax.GradientTransformationExtraArgs:
    """The chain clip -> `OPTIMIZERS[name]` -> rules -> learning rate.

    schedule: the number of updates made so far -> rate, or a stateful one; `lr` multiplies it. clip_norm: the
    threshold of `CLIPS[clip]`; 0 does not clip. rules: per-parameter rules (`trainer.optim.rules`), whose fit to the
    parameters is checked by `init`; a frozen parameter adds nothing to the gradient's norm. total_steps: the
    length of the run, for a rule that ends before it. kwargs: the entry's.
    Raises ConfigError for what cannot be combined.
    """
    if name == "lbfgs" and (clip_norm or rules_lib.any_lr(rules)):
        raise ConfigError(
            "'lbfgs' needs the gradient as it is; set config.optimizer.clip_norm to 0 and no lr in the rules"
        )
    until = rules_lib.any_until(rules)
    if until and (total_steps is None or isinstance(schedule, optax.schedules.StatefulSchedule)):
        raise ConfigError("a rule with until_... needs a schedule of a known course, which 'plateau' is not")
    recipe = OPTIMIZERS[name](rules, **kwargs)
    if recipe.average and isinstance(schedule, optax.schedules.StatefulSchedule):
        raise ConfigError(f"'{name}' cannot follow the schedule 'plateau'; choose 'constant'")
    # Frozen parameters stay out of norms and moments from the first link on; the last link makes it exact.
    frozen = transforms.freeze(rules) if rules_lib.any_frozen(rules) else None
    rate = optax.inject_hyperparams(_scale_by_rate)(lr=lr, schedule=schedule)
    chain = (
        *((("frozen_gradients", frozen),) if frozen and recipe.first else ()),
        *recipe.first,
        *((("frozen", frozen),) if frozen else ()),
        *((("clip", CLIPS[clip](clip_norm)),) if clip_norm else ()),
        *recipe.links,
        *((("rules", transforms.scale_by_rules(rules)),) if rules_lib.any_lr(rules) else ()),
        *((("until", transforms.end_early(rules, schedule, total_steps)),) if until else ()),
        ("learning_rate", rate),
        *recipe.last,
    )
    if recipe.average:
        role, wrap = recipe.average
        chain = ((role, wrap(optax.named_chain(*chain), schedule)),)
    tx = optax.named_chain(*chain, *((("frozen_updates", frozen),) if frozen else ()))

    def init(params):
        rules_lib.assign(rules, params)
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def _scale_by_rate(lr, schedule):
    return optax.scale_by_learning_rate(lr * schedule)


def with_hyperparams(opt_state, *, lr: float, weight_decay: float):
    """`opt_state` (host arrays) with this peak rate and weight decay, where the chain has them."""
    values = {"lr": np.asarray(lr, np.float32), "weight_decay": np.asarray(weight_decay, np.float32)}

    def value(path, leaf):
        injected = len(path) > 1 and getattr(path[-2], "name", "") == "hyperparams"
        return values.get(path[-1].key, leaf) if injected else leaf

    return jax.tree_util.tree_map_with_path(value, opt_state)


def with_schedule_at(opt_state, place: int):
    """`opt_state` (host arrays) whose schedule, and rules that end early, go on after `place` steps.

    The counts of updates that moments are corrected by stay.
    """

    def value(path, leaf):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        counts = names[-1] == "count" and "learning_rate" in names and "plateau" not in names
        if counts or names[-1] == "until":
            return np.full_like(leaf, place)
        return np.full_like(leaf, place + 1) if names[-1] == "step_count" else leaf  # schedule_free counts from 1

    return jax.tree_util.tree_map_with_path(value, opt_state)


def applied_lr(opt_state) -> jax.Array:
    """The learning rate (float32 scalar) of the update that produced `opt_state`; a line search's step is a factor."""
    averaged = "schedule_free" in opt_state
    states = opt_state["schedule_free"].base_optimizer_state if averaged else opt_state
    rate = math.prod(states["learning_rate"].hyperparams.values())
    return rate * states["line_search"].learning_rate if "line_search" in states else rate


@jax.jit
def _schedule_free_average(state, params):
    average = optax.contrib.schedule_free_eval_params(state, params)
    # Where y is z, so is x: what is frozen stays exact.
    return jax.tree.map(lambda x, y, z: jnp.where(y == z, y, x), average, params, state.z)


def evaluated_params(opt_state, params: Any) -> Any:
    """The parameters to judge: the average of `schedule_free`, the slow ones of `lookahead`, else `params`."""
    if "schedule_free" in opt_state:
        state = opt_state["schedule_free"]
        return _schedule_free_average(state, params)
    if "lookahead" in opt_state:
        return opt_state["lookahead"].slow
    return params
