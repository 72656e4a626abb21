"""Signs in runs that learnt nothing: they ended in NaN, or the loss stayed at chance."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from linseed.trainer.tuning.diagnosis import remedies
from linseed.trainer.tuning.diagnosis.curve import AT_CHANCE, Curve
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.signs_in_train import (
    SAME,
    bad_start,
    decay_outweighs,
    early_ends,
    high_start,
    short_path,
    starts_high,
)


def non_finite(curve: Curve | None, *, config: Mapping[str, Any], stopped: str) -> Iterator[Finding]:
    """NaN or infinity, and its causes. curve: the finite records before it, None if there are none."""
    lower = remedies.rate(config, times=0.1)
    if curve is None:
        evidence = f"it came before the first record ({stopped or 'no record holds a finite loss'})"
        rate = "the usual cause"
    else:
        grown = curve.grad_norm[-1] / max(np.median(curve.grad_norm), 1e-30)
        evidence = (
            f"the last finite loss is {curve.loss[-1]:.3g} at step {curve.step[-1]:.0f}, the lowest "
            f"{curve.loss.min():.3g}; gradient norm {grown:.1f} times its median"
        )
        rate = f"the usual cause; the rate was {curve.rate[-1]:.3g}"
    yield Finding("non_finite", evidence, f"{lower}, in a new --workdir")
    yield Finding("lr_too_high", rate, lower)
    if curve is None or starts_high(curve):
        yield from bad_start(config, evidence=SAME)


def stays_at_chance(curve: Curve) -> bool:
    """Whether the second half of the run is at chance: loss, train accuracy and validation accuracy."""
    half = curve.part(0.5, 1.0)
    late = curve.val_index >= np.flatnonzero(half)[0]
    known = [accuracy.beats_chance(classes=curve.classes) for accuracy in (curve.train(half), curve.val(late))]
    return np.median(curve.loss[half]) >= AT_CHANCE * curve.chance and not any(known)


def at_chance(curve: Curve) -> Iterator[Finding]:
    """The first cause that fits the numbers, and also layers that no gradient reaches."""
    yield from next(filter(None, (list(sign(curve)) for sign in STUCK)), [])
    yield from _no_gradient(curve)


def _bad_start(curve):
    if starts_high(curve):
        yield from high_start(curve, more=f"; {_where(curve)}")


def _lr_too_low(curve):
    """The weights hardly moved; the rate itself is sound if it was only spent early."""
    if curve.hardly_moved and not _is_silent(curve):
        for end, what, remedy in early_ends(curve):
            yield Finding("decayed_too_early", f"{_where(curve)}; {what} at step {end:.0f}", remedy)
            return
        yield Finding("lr_too_low", f"{_where(curve)}; {short_path(curve)}", remedies.rate(curve.config, times=10))
        yield Finding("bad_init", SAME, remedies.better_start(curve.config))


def _lr_too_high(curve):
    """The loss fell below chance and came back, or ends above chance."""
    if curve.smooth.min() < 0.9 * curve.chance or _late(curve, curve.loss) > 1.1 * curve.chance:
        evidence = f"{_where(curve)}; lowest {curve.loss.min():.3f} before"
        yield Finding("lr_too_high", evidence, remedies.rate(curve.config, times=0.1))


def _decay_too_high(curve):
    yield from decay_outweighs(curve, evidence=_where(curve))


def _shuffled_labels(curve):
    """There are gradients and the weights move, but the loss stays at chance."""
    if _is_silent(curve):
        return
    gradient, ratio = _late(curve, curve.grad_norm), _late(curve, curve.update_ratio)
    evidence = (
        f"{_where(curve)}, though neither gradient norm {gradient:.3g} nor update ratio {ratio:.1g} (update over "
        "weights) is small"
    )
    yield Finding("shuffled_labels", evidence, "look at images with their labels")
    yield Finding("bad_init", SAME, remedies.better_start(curve.config))
    yield Finding("lr_too_high", SAME, remedies.rate(curve.config, times=0.1))


STUCK = (_bad_start, _lr_too_low, _lr_too_high, _decay_too_high, _shuffled_labels)


def _no_gradient(curve):
    """Dead units if the gradient was larger at first, else initial weights that let no signal through."""
    if not _is_silent(curve):
        return
    gradient, where = _late(curve, curve.grad_norm), _where(curve)
    silence = f"gradient norm {gradient:.3g}, of which the last bias alone gives {_bias_gradient(curve):.3g}"
    remedy = f"{remedies.rate(curve.config, times=0.1)}, or --config.model.activation=leaky_relu"
    dead = Finding("dead_units", f"{silence}: no gradient reaches the layers below; {where}", remedy)
    init = Finding("bad_init", f"{silence}; {where}", remedies.better_start(curve.config))
    inits = [] if starts_high(curve) else [init]  # already reported
    if gradient < 0.5 * curve.grad_norm[0]:
        yield from (dead, *(init._replace(evidence=silence) for init in inits))
    else:
        yield from (*inits, dead._replace(evidence=SAME))


def _is_silent(curve):
    return _late(curve, curve.grad_norm) < 1.25 * _bias_gradient(curve)


def _bias_gradient(curve):
    """Expected gradient norm of the last layer's bias at chance: the mean of a batch of draws with mean 0.

    At probabilities of 1/C an image's gradient is p - y, with squared norm 1 - 1/C; at equal scores the SVM's is
    C (C - 1).
    """
    square = 1 - 1 / curve.classes
    if curve.config["loss"]["name"] == "svm":
        square = curve.classes * (curve.classes - 1)
    model = curve.config["model"]
    if model.get("activation") == "sigmoid" and model.get("normalization") == "none":
        square *= 1 + model["widths"][-1] / 4  # sigmoids of 0 are 1/2: constant inputs, like the bias's
    return math.sqrt(square / (curve.examples / curve.steps)[0])


def _where(curve):
    loss = _late(curve, curve.loss)
    return f"train loss {loss:.3f} over the second half, {curve.chance:.3f} at chance"


def _late(curve, values):
    return curve.median(values, 0.5, 1.0)
