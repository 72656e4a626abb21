"""Transforms of the optimisers' chains that Optax lacks, or has with another convention."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linseed.trainer.optim import rules as rules_lib


def add_decay(weight_decay: float, rules: Sequence[str]) -> optax.GradientTransformation:
    """g + weight_decay * m * x, m the decay multiplier of the parameter's rule."""

    def update(updates, params):
        multipliers = rules_lib.decay_multipliers(rules, params)
        return jax.tree.map(lambda g, x, m: g + weight_decay * m * x if m else g, updates, params, multipliers)

    return optax.stateless(update)


def add_decay_layerwise(
    weight_decay: float, rules: Sequence[str], trust_coefficient: float
) -> optax.GradientTransformation:
    """r (g + weight_decay * m * x), r = trust_coefficient |x| / (|g| + weight_decay * m * |x|) by layer.

    m is the decay multiplier of the parameter's rule. r is 1 for what does not decay by default, and where |x| or the
    denominator is 0. You et al. 2017, "Large batch training of convolutional networks", algorithm 1.
    """

    def scaled(g, x, m, layerwise):
        decayed = g + weight_decay * m * x
        if not layerwise:
            return decayed
        size = jnp.linalg.norm(x)
        total = jnp.linalg.norm(g) + weight_decay * m * size
        usable = (size > 0) & (total > 0)
        return jnp.where(usable, trust_coefficient * size / jnp.where(usable, total, 1.0), 1.0) * decayed

    def update(updates, params):
        multipliers = rules_lib.decay_multipliers(rules, params)
        return jax.tree.map(scaled, updates, params, multipliers, rules_lib.decay_mask(params))

    return optax.stateless(update)


def scale_by_rules(rules: Sequence[str]) -> optax.GradientTransformation:
    """g * m, m the learning-rate multiplier of the parameter's rule."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda g, m: g * m, updates, rules_lib.lr_multipliers(rules, updates))
    )


def end_early(rules: Sequence[str], schedule: optax.Schedule, total_steps: int) -> optax.GradientTransformation:
    """g * schedule(t total_steps / n) / schedule(t) at step t < n, then 0, if a rule ends at step n; else g.

    The chain multiplies by schedule(t) later. The product is the schedule of a run of n steps, or 0 if schedule(t) is.
    """

    def update(updates, count, params=None):
        def end(g, last):
            if last == math.inf:
                return g
            rate = schedule(count)
            early = schedule(count * (total_steps / last)) / jnp.where(rate == 0, 1, rate)
            return g * jnp.where((count < last) & (rate != 0), early, 0.0)

        return jax.tree.map(end, updates, rules_lib.last_steps(rules, updates)), optax.safe_increment(count)

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)


def freeze(rules: Sequence[str]) -> optax.GradientTransformation:
    """Zero for the parameters that a rule freezes."""

    def update(updates, params):
        multipliers = rules_lib.lr_multipliers(rules, updates)
        return jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g), updates, multipliers)

    return optax.stateless(update)


def scale_by_adagrad(eps: float) -> optax.GradientTransformation:
    """g / (sqrt(s) + eps), s the sum of g^2 from 0. Duchi et al. 2011.

    `optax.scale_by_rss` starts the sum at 0.1 by default and has eps inside the root.
    """

    def init(params):
        return optax.ScaleByRssState(optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        total = jax.tree.map(lambda g, s: s + g * g, updates, state.sum_of_squares)
        updates = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total)
        return updates, optax.ScaleByRssState(total)

    return optax.GradientTransformation(init, update)


class Moments(NamedTuple):
    """mu: running mean of g. nu: running mean of g^2. Both start at 0, without bias correction."""

    mu: Any
    nu: Any


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps), m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2: Adam without its bias correction."""

    def init(params):
        return Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), Moments(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_muon(momentum: float, b1: float, b2: float, eps: float, adam_params: str) -> optax.GradientTransformation:
    """Muon for the parameters that decay by default, Adam for the rest and for paths that `adam_params` matches.

    A kernel of more than two axes is the matrix [all but the last, last], which suits HWIO convolutions. So is the
    query kernel of Flax's attention, [D, heads, head size]; others take it as [D, heads x head size]. The momentum is
    Optax's, a running mean with the bias correction of Nadam; Jordan's is a plain sum.
    """
    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, eps=eps, weight_dimension_numbers=_as_matrices),
        _scale_by_shape(0.2),
    )
    transforms = {"muon": muon, "other": optax.scale_by_adam(b1, b2, eps)}
    return optax.partition(transforms, _muon_or_other(adam_params, key="adam_params"))


def scale_by_muon_nesterov(
    *, momentum: float, newton_schulz_steps: int, eps: float, nesterov_momentum: float, nesterov_params: str
) -> optax.GradientTransformation:
    """Jordan's Muon for the parameters that decay by default, Nesterov momentum for the rest and `nesterov_params`.

    Kernels are matrices as in `scale_by_muon`. The momentum is a plain sum, v = rho v + g. Then
    g + rho v, divided by its Frobenius norm + eps, is made orthogonal by `newton_schulz_steps` quintic steps with
    Jordan's coefficients. A few steps leave the small singular values small, and the large ones near 1.
    """
    # Only Optax's orthogonalisation: beta=0 turns its momentum off.
    orthogonalize = optax.contrib.scale_by_muon(
        ns_steps=newton_schulz_steps, beta=0.0, eps=eps, nesterov=False, weight_dimension_numbers=_as_matrices
    )
    muon = optax.chain(optax.trace(momentum, nesterov=True), orthogonalize)
    transforms = {"muon": muon, "other": optax.trace(nesterov_momentum, nesterov=True)}
    return optax.partition(transforms, _muon_or_other(nesterov_params, key="nesterov_params"))


def normalize_kernels(nesterov_params: str) -> optax.GradientTransformation:
    """The last transform: x = sqrt(O) x / |x| + u for Muon's parameters, O the size of the last axis (outputs).

    Each step is then relative to a kernel of known size: the weights of an output have norm 1 on average.
    """
    labels = _muon_or_other(nesterov_params, key="nesterov_params")

    def normalized(label, u, x):
        if label == "other":
            return u
        return u + (x.shape[-1] ** 0.5 / jnp.maximum(jnp.linalg.norm(x), 1e-12) - 1.0) * x

    return optax.stateless(lambda updates, params: jax.tree.map(normalized, labels(params), updates, params))


def _muon_or_other(pattern, *, key):
    """params -> "muon" for the leaves that decay by default and whose path `pattern` does not match, else "other"."""
    pattern = rules_lib.compile_pattern(pattern, key=f"config.optimizer.{key}")

    def labels(params):
        decays = jax.tree.leaves(rules_lib.decay_mask(params))
        other = [pattern.fullmatch(path) is not None for path in rules_lib.paths(params)]
        found = ["muon" if d and not o else "other" for d, o in zip(decays, other, strict=True)]
        return jax.tree.structure(params).unflatten(found)

    return labels


def _as_matrices(params):
    """Every leaf as the matrix [all but the last axis, last axis]."""
    return jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), params
    )


def _scale_by_shape(rms):
    """u * rms * sqrt(max(fan_in, fan_out)): the root mean square of an orthogonal update becomes `rms`."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u: u * rms * max(u.size // u.shape[-1], u.shape[-1]) ** 0.5,
            updates,
        )
    )


def sharpness_aware(rho: float) -> optax.GradientTransformationExtraArgs:
    """The gradient at x + rho g / |g|, |g| the global norm. Foret et al. 2021, equation 2.

    `update` needs grad_fn, params -> grads. `optax.contrib.sam` wraps a whole optimiser instead, and divides zero by
    zero at a zero gradient.
    """

    def update(updates, state, params, *, grad_fn, **extra_args):
        length = rho / (optax.tree.norm(updates) + 1e-12)
        return grad_fn(optax.tree.add_scale(params, length, updates)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def line_search(max_steps: int) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_zoom_linesearch` with a first guess of 1. Ignores unknown arguments."""
    inner = optax.scale_by_zoom_linesearch(max_steps, initial_guess_strategy="one")

    def init(params):
        # Only Optax's first state has weak types, so that a step would compile twice.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), inner.init(params))

    def update(updates, state, params, *, value, grad, value_fn, **extra_args):
        return inner.update(updates, state, params, value=value, grad=grad, value_fn=value_fn)

    return optax.GradientTransformationExtraArgs(init, update)


class LookaheadState(NamedTuple):
    """count: updates since slow and fast parameters were equal, int32. slow: the slow parameters."""

    count: jax.Array
    slow: Any


def lookahead(sync_steps: int, slow_rate: float) -> optax.GradientTransformation:
    """The last transform: every `sync_steps` updates slow += slow_rate (x - slow), and x = slow. Zhang et al. 2019."""

    def init(params):
        return LookaheadState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates, state, params):
        count = (state.count + 1) % sync_steps
        synced = count == 0
        slow = jax.tree.map(
            lambda s, x, u: jnp.where(synced, s + slow_rate * (x + u - s), s), state.slow, params, updates
        )
        updates = jax.tree.map(lambda s, x, u: jnp.where(synced, s - x, u), slow, params, updates)
        return updates, LookaheadState(count, slow)

    return optax.GradientTransformation(init, update)


def schedule_free(
    tx: optax.GradientTransformation, schedule: optax.Schedule, *, b1: float
) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.schedule_free` around `tx`. The rates that `tx` applies are the weights of its average.

    Optax counts steps from 1, the chain's schedule from 0.
    """
    return optax.contrib.schedule_free(tx, lambda count: schedule(count - 1), b1=b1)
