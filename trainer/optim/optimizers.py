"""Optimisers: what each makes of a gradient, as Optax links that are named after their roles.

An entry of `OPTIMIZERS` returns a `Recipe`: its links, and where they stand in the chain that `optim.make_tx` puts
together.
"""

import functools
from typing import NamedTuple

import optax

from linseed.ranges import AboveZero, BelowOne, Count, Inside, NonNegative, Positive
from linseed.trainer.optim import rules as rules_lib
from linseed.trainer.optim import transforms


class Recipe(NamedTuple):
    """The links of an optimiser, (name, transformation) each, by where they stand in the chain of `optim.make_tx`."""

    links: tuple = ()  # between clipping and the learning rate
    first: tuple = ()  # before clipping
    last: tuple = ()  # after the learning rate
    average: tuple = ()  # (name, (tx, schedule) -> tx): around all of these


def _decay(rules, weight_decay):
    return ("weight_decay", optax.inject_hyperparams(transforms.add_decay)(weight_decay, rules))


# Entries are named (rules, *, parameters of the config). Decay is coupled, L2 in the gradient, where it stands
# before the scaling, and decoupled (Loshchilov and Hutter 2019), times the learning rate, where it stands after.
# Defaults are those of the paper, or else of PyTorch or Optax.


def _sgd(rules, *, weight_decay: NonNegative = 0.0):
    # x -= lr g
    return Recipe((_decay(rules, weight_decay),))


def _momentum(rules, *, momentum: BelowOne = 0.9, weight_decay: NonNegative = 0.0):
    # v = rho v + g; x -= lr v. Sutskever et al. 2013.
    return Recipe((_decay(rules, weight_decay), ("momentum", optax.trace(momentum))))


def _nesterov(rules, *, momentum: BelowOne = 0.9, weight_decay: NonNegative = 0.0):
    # v = rho v + g; x -= lr (g + rho v). Sutskever et al. 2013, in the form of PyTorch and Optax.
    return Recipe((_decay(rules, weight_decay), ("momentum", optax.trace(momentum, nesterov=True))))


def _adagrad(rules, *, eps: Positive = 1e-7, weight_decay: NonNegative = 0.0):
    # s += g^2; x -= lr g / (sqrt(s) + eps). Duchi et al. 2011.
    return Recipe((_decay(rules, weight_decay), ("adagrad", transforms.scale_by_adagrad(eps))))


def _rmsprop(rules, *, decay: AboveZero = 0.9, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0):
    # s = d s + (1 - d) g^2; x -= lr g / (sqrt(s) + eps). Tieleman and Hinton 2012. Optax's default has eps in the root.
    rms = optax.scale_by_rms(decay, eps, eps_in_sqrt=False)
    return Recipe((_decay(rules, weight_decay), ("rmsprop", rms)))


def _adam(rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0):
    # m^ and v^, the bias-corrected moments; x -= lr m^ / (sqrt(v^) + eps). Kingma and Ba 2015.
    return Recipe((_decay(rules, weight_decay), ("adam", optax.scale_by_adam(b1, b2, eps))))


def _adam_uncorrected(
    rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0
):
    # The lecture's "almost" Adam: x -= lr m / (sqrt(v) + eps). Its first step is (1 - b1) / sqrt(1 - b2) that of Adam.
    return Recipe((_decay(rules, weight_decay), ("adam", transforms.scale_by_uncorrected_adam(b1, b2, eps))))


def _nadam(rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0):
    # Adam with m^ = b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t). Dozat 2016, with a constant b1.
    return Recipe((_decay(rules, weight_decay), ("adam", optax.scale_by_adam(b1, b2, eps, nesterov=True))))


def _adamw(rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.01):
    # Adam, decoupled decay. Loshchilov and Hutter 2019.
    return Recipe((("adam", optax.scale_by_adam(b1, b2, eps)), _decay(rules, weight_decay)))


def _lion(rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.99, weight_decay: NonNegative = 0.0):
    # x -= lr (sign(b1 m + (1 - b1) g) + decay x); m = b2 m + (1 - b2) g. Chen et al. 2023.
    return Recipe((("lion", optax.scale_by_lion(b1, b2)), _decay(rules, weight_decay)))


def _lamb(rules, *, b1: BelowOne = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-6, weight_decay: NonNegative = 0.0):
    # u = Adam's update + decay x; x -= lr |x| / |u| u, norms by layer. You et al. 2020. Biases and scales: ratio 1.
    adam, trust = optax.scale_by_adam(b1, b2, eps), optax.masked(optax.scale_by_trust_ratio(), rules_lib.decay_mask)
    return Recipe((("adam", adam), _decay(rules, weight_decay), ("trust_ratio", trust)))


def _lars(rules, *, momentum: BelowOne = 0.9, trust_coefficient: Positive = 0.001, weight_decay: NonNegative = 0.0):
    # v = rho v + c |x| / (|g| + decay |x|) (g + decay x); x -= lr v, norms by layer, ratio 1 for biases and scales. You
    # et al. 2017; optax.lars divides by |g + decay x|. The paper has lr inside v, which differs while lr changes; here
    # it is as in `momentum`.
    layerwise = optax.inject_hyperparams(transforms.add_decay_layerwise, static_args="trust_coefficient")
    decay = ("weight_decay", layerwise(weight_decay, rules, trust_coefficient))
    return Recipe((decay, ("momentum", optax.trace(momentum))))


def _adafactor(
    rules,
    *,
    decay_rate: AboveZero = 0.8,
    clip_threshold: Positive = 1.0,
    min_dim_size_to_factor: Count = 128,
    weight_decay: NonNegative = 0.0,
):
    # u = g / sqrt(v), v a running mean of g^2 with rate 1 - t^-decay_rate, kept as a row and a column mean where two
    # axes reach min_dim_size_to_factor; u /= max(1, rms(u) / clip_threshold); x -= lr (max(1e-3, rms(x)) u + decay x).
    # Shazeer and Stern 2018. optax.adafactor does not multiply decay by lr.
    factored = optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor)
    return Recipe(
        (
            ("adafactor", factored),
            ("update_clip", optax.clip_by_block_rms(clip_threshold)),
            ("parameter_scale", optax.scale_by_param_block_rms()),
            _decay(rules, weight_decay),
        )
    )


def _muon(
    rules,
    *,
    momentum: BelowOne = 0.95,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: Positive = 1e-8,
    adam_params: str = "head/.*",
    weight_decay: NonNegative = 0.0,
):
    # Nesterov momentum made orthogonal by five Newton-Schulz steps, for the parameters that decay, conv kernels as
    # matrices [H W I, O]; Adam for biases, scales and those whose path the regex adam_params matches, such as
    # "head/.*" ("" for none). Jordan 2024, with Liu et al.'s factor 0.2 sqrt(max(fan_in, fan_out)) (2025), which gives
    # both parts updates of one size, so that they share a rate.
    return Recipe((("muon", transforms.scale_by_muon(momentum, b1, b2, eps, adam_params)), _decay(rules, weight_decay)))


def _muon_nesterov(
    rules,
    *,
    momentum: BelowOne = 0.6,
    newton_schulz_steps: Count = 3,
    eps: Positive = 1e-8,
    nesterov_momentum: BelowOne = 0.85,
    nesterov_params: str = "head/.*",
    weight_decay: NonNegative = 0.0,
):
    # u = NewtonSchulz(g + rho v), v = rho v + g; x = sqrt(outputs) x / |x| - lr u, for the parameters that decay by
    # default, kernels as matrices [.., O]; Nesterov momentum SGD for biases, scales and those whose path the regex
    # nesterov_params matches, such as "head/.*", with a rate of its own by the rules. Jordan 2024, as in
    # airbench94_muon. Decay is coupled, and for what is normalised anew at each step without a purpose: "decay=0".
    scale = transforms.scale_by_muon_nesterov(
        momentum=momentum,
        newton_schulz_steps=newton_schulz_steps,
        eps=eps,
        nesterov_momentum=nesterov_momentum,
        nesterov_params=nesterov_params,
    )
    normalize = ("normalize", transforms.normalize_kernels(nesterov_params))
    return Recipe((_decay(rules, weight_decay), ("muon", scale)), last=(normalize,))


def _sam(rules, *, rho: Positive = 0.05, momentum: BelowOne = 0.9, weight_decay: NonNegative = 0.0):
    # Momentum SGD on the gradient at x + rho g / |g|. Foret et al. 2021; needs grad_fn, and costs a second gradient.
    ascent = ("sam", transforms.sharpness_aware(rho))
    return Recipe((_decay(rules, weight_decay), ("momentum", optax.trace(momentum))), first=(ascent,))


def _lookahead(
    rules,
    *,
    momentum: BelowOne = 0.9,
    sync_steps: Count = 5,
    slow_rate: AboveZero = 0.5,
    weight_decay: NonNegative = 0.0,
):
    # Momentum SGD; every sync_steps updates slow += slow_rate (x - slow), x = slow. Zhang et al. 2019. Our own link:
    # optax.lookahead changes the structure of the parameters.
    slow = ("lookahead", transforms.lookahead(sync_steps, slow_rate))
    return Recipe((_decay(rules, weight_decay), ("momentum", optax.trace(momentum))), last=(slow,))


def _schedule_free(
    rules, *, b1: Inside = 0.9, b2: BelowOne = 0.999, eps: Positive = 1e-8, weight_decay: NonNegative = 0.0
):
    # AdamW without its first moment moves z; gradients are taken at y = (1 - b1) z + b1 x, where x is the mean of z
    # with weights lr^2. Defazio et al. 2024. The params are y; evaluate x, `optim.evaluated_params`. Constant schedule
    # with warm-up. BatchNorm's statistics are those of y.
    rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    average = ("schedule_free", functools.partial(transforms.schedule_free, b1=b1))
    return Recipe((("adam", rms), _decay(rules, weight_decay)), average=average)


def _lbfgs(rules, *, memory_size: Count = 10, max_linesearch_steps: Count = 20):
    # x -= lr s H g: H from the last memory_size updates (Liu and Nocedal 1989), s from a line search that meets the
    # strong Wolfe conditions (Nocedal and Wright, algorithms 3.5 and 3.6). As optax.lbfgs; lr = 1 is the plain method.
    # Full batch, no dropout, no augmentation; decay is a regulariser, part of the value: needs value, grad, value_fn.
    del rules
    return Recipe(
        (("lbfgs", optax.scale_by_lbfgs(memory_size)),),
        last=(("line_search", transforms.line_search(max_linesearch_steps)),),
    )


OPTIMIZERS = {
    "adafactor": _adafactor,
    "adagrad": _adagrad,
    "adam": _adam,
    "adam_uncorrected": _adam_uncorrected,
    "adamw": _adamw,
    "lamb": _lamb,
    "lars": _lars,
    "lbfgs": _lbfgs,
    "lion": _lion,
    "lookahead": _lookahead,
    "momentum": _momentum,
    "muon": _muon,
    "muon_nesterov": _muon_nesterov,
    "nadam": _nadam,
    "nesterov": _nesterov,
    "rmsprop": _rmsprop,
    "sam": _sam,
    "schedule_free": _schedule_free,
    "sgd": _sgd,
}

# The peak rate of a config that names none, for batches of about 128.
DEFAULT_LR = {
    "adafactor": 1e-2,  # relative to the root mean square of a kernel
    "adagrad": 1e-2,
    "adam": 1e-3,
    "adam_uncorrected": 1e-3,
    "adamw": 1e-3,
    "lamb": 2.5e-3,
    "lars": 1.0,
    "lbfgs": 1.0,
    "lion": 3e-4,
    "lookahead": 0.1,
    "momentum": 0.1,
    "muon": 5e-3,  # with the factor above, Jordan's 0.02 for a kernel of 400 inputs
    "muon_nesterov": 0.1,
    "nadam": 1e-3,
    "nesterov": 0.1,
    "rmsprop": 1e-3,
    "sam": 0.1,
    "schedule_free": 2.5e-3,
    "sgd": 0.1,
}


def decouples_decay(name: str, **kwargs) -> bool:
    """Whether `OPTIMIZERS[name]` decays the weights beside the scaled gradient, times the rate, and not within it."""
    return OPTIMIZERS[name](rules_lib.DEFAULT_RULES, **kwargs).links[0][0] != "weight_decay"
