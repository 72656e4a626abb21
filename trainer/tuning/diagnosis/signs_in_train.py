"""Signs in the train curve: the rate, the decay, the initial weights, and a second softmax.

Each function looks for one cause in a run that left chance, and yields nothing if it does not find it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from linseed.trainer.tuning.diagnosis import floors, remedies
from linseed.trainer.tuning.diagnosis.curve import AT_CHANCE, LEARNT, POINTS, SIGMAS, STANDS_STILL, Curve, windows
from linseed.trainer.tuning.diagnosis.findings import Finding

SAME = "the curve alone cannot tell it from the cause before"
FELL = 0.25  # of the peak rate; a cosine and a line are there after two thirds of the run
EARLY = 0.2  # of the run; the usual schedules fall after a third or half of it
JUMP = 0.05  # of the loss at chance: small losses double and halve by noise


def double_softmax(curve: Curve) -> Iterator[Finding]:
    """The loss is at the floor of a double softmax plus 1 - s for each wrong image, s the label smoothing."""
    if "softmax" not in curve.config["loss"]["name"] or curve.mixes:
        return
    smoothing = curve.config["label_smoothing"]
    floor = floors.double_softmax_loss(num_classes=curve.classes, label_smoothing=smoothing)
    accuracy = curve.train(curve.part(2 / 3, 1.0))
    _, before, loss = curve.thirds(curve.loss)
    far = abs(loss - floor - (1 - smoothing) * (1 - accuracy.right)) > POINTS + SIGMAS * accuracy.error
    below = (curve.smooth + SIGMAS * curve.noise < floor).any()
    if below or far or accuracy.right < 0.5 or loss < STANDS_STILL * before:
        return
    evidence = (
        f"train loss {loss:.3f} at {accuracy.right:.1%} train accuracy; no window is below {floor:.3f}, the lowest "
        f"loss of a softmax of a softmax with {curve.classes} classes"
    )
    yield Finding("double_softmax", evidence, "return logits from the network: the loss applies the softmax")


def lr_too_high(curve: Curve) -> Iterator[Finding]:
    """The loss rises at a high rate, or stays near chance until the rate falls."""
    lower = remedies.rate(curve.config, times=1 / 3)
    if evidence := _rise(curve):
        yield Finding("lr_too_high", evidence, lower)
    elif evidence := _wait_for_decay(curve):
        yield Finding("lr_too_high", evidence, lower)
        yield Finding("bad_init", SAME, remedies.better_start(curve.config))


def _rise(curve):
    """Evidence of a rise from the lowest median of three windows to a later one of five (spikes are shorter), or ""."""
    lowest = np.minimum.accumulate(np.median(windows(curve.excess, 3), axis=1))
    ahead = np.median(windows(curve.excess, 5), axis=1)[3:]
    lowest = lowest[: len(ahead)]
    # Windows of a sound run vary by less than a quarter plus JUMP.
    risen = ahead > lowest + np.minimum(0.25 * lowest, _above_floor(curve, JUMP)) + _above_floor(curve, JUMP)
    # Medians of 3 and of 5 differ by 0.86 of a window's noise; the lowest of R is lower by another sqrt(2 log R).
    sigmas = 0.86 * (SIGMAS + math.sqrt(2 * math.log(len(curve.loss))))
    risen &= ahead > lowest + sigmas * curve.noise[3 : 3 + len(ahead)]
    risen &= ~windows(curve.restarted, 5).any(axis=1)[3:]
    if not risen.any():
        return ""
    i = int(np.argmax(risen))
    return (
        f"train loss rose from {lowest[i] + curve.floor:.3g} to {ahead[i] + curve.floor:.3g}, the median of steps "
        f"{curve.step[i + 3]:.0f} to {curve.step[i + 7]:.0f}, at rate {curve.rate[i + 3]:.3g}"
    )


def _wait_for_decay(curve):
    """Evidence of a loss near chance at a high rate while the updates replace the weights, or ""."""
    (high, rate), (low, decayed) = (
        [curve.median(values, *span) for values in (curve.excess, curve.rate)] for span in ((0.1, 0.6), (0.9, 1.0))
    )
    if decayed >= 0.5 * rate or high <= _above_floor(curve, 0.85) or low >= 0.85 * high or curve.path <= 1:
        return ""
    return (
        f"train loss stays at {high + curve.floor:.3f} while the rate is high ({curve.chance:.3f} at chance), with "
        f"updates of {curve.median(curve.update_ratio, 0.1, 0.6):.1g} of the weights, and falls to "
        f"{low + curve.floor:.3f} after the rate falls"
    )


def _above_floor(curve, part):
    return part * (curve.chance - curve.floor)


def lr_too_low(curve: Curve) -> Iterator[Finding]:
    """The loss still falls at the end, and the weights have hardly moved."""
    _, before, end = curve.thirds(curve.excess)
    if curve.hardly_moved and LEARNT * curve.chance < end < before:
        evidence = f"train loss still falls at the end, at {curve.loss[-1]:.3f}; {short_path(curve)}"
        yield Finding("lr_too_low", evidence, remedies.rate(curve.config, times=10))
        if curve.median(curve.loss, 0.0, 1 / 3) > AT_CHANCE * curve.chance:
            yield Finding("bad_init", SAME, remedies.better_start(curve.config))


def short_path(curve: Curve) -> str:
    """The evidence of weights that have hardly moved."""
    return f"all updates together are {curve.path:.2g} times the norm of the weights"


def decayed_too_early(curve: Curve) -> Iterator[Finding]:
    """The loss falls until the rate does, or until rules end most updates, early in the run, and ends far above 0."""
    if curve.mixes or np.median(curve.excess[-3:]) < LEARNT / 2 * curve.chance:
        return
    for end, cause, remedy in early_ends(curve):
        reached = float(np.median(curve.loss[curve.step > end][:2]))
        if curve.hardly_moved or reached < 0.9 * curve.chance:
            evidence = (
                f"train loss had fallen to {reached:.3f} by step {end:.0f} of {curve.step[-1]:.0f}, when {cause}; it "
                f"ends at {curve.loss[-1]:.3f}"
            )
            yield Finding("decayed_too_early", evidence, remedy)
            return


def _early_fall(curve):
    """The last step before the rate falls below `FELL` of its peak, if that is early and for good; else None."""
    fell = curve.rate < FELL * np.maximum.accumulate(curve.rate)
    if not fell[1:].any() or curve.restarted.any():
        return None
    last = curve.step[np.argmax(fell) - 1]
    return float(last) if last <= EARLY * curve.step[-1] else None


def early_ends(curve: Curve) -> Iterator[tuple[float, str, str]]:
    """The early steps at which the rate falls, or a rule ends most of the updates: (step, what happens, remedy)."""
    if fall := _early_fall(curve):
        yield fall, "the rate fell", remedies.LATER
    for rule, end in curve.rule_ends:
        before, after = np.flatnonzero(curve.step <= end)[-3:], np.flatnonzero(curve.step > end)[:3]
        pace = curve.update_ratio / np.maximum(curve.rate, 1e-30)
        ended = len(before) and len(after) and np.median(pace[after]) < np.median(pace[before]) / 2
        if ended and end <= EARLY * curve.step[-1]:
            yield end, f"the rule '{rule}' ends", "a later until_... in config.optimizer.rules"


def decay_too_high(curve: Curve) -> Iterator[Finding]:
    """Train loss stands still far above its floor, and decay is most of the update."""
    _, before, end = curve.thirds(curve.excess)
    if end > max(LEARNT * curve.chance, 0.9 * before):
        yield from decay_outweighs(curve, evidence=f"train loss stands still at {curve.loss[-1]:.3f}")


def decay_outweighs(curve: Curve, *, evidence: str) -> Iterator[Finding]:
    """Decoupled decay is more than half the norm of the updates; in a sound run it is about a hundredth."""
    optimizer = curve.config["optimizer"]
    if optimizer["name"] not in ("adamw", "lion", "muon", "schedule_free"):  # the others add it to the gradient
        return
    shares = curve.rate * optimizer["weight_decay"] / np.maximum(curve.update_ratio, 1e-30)
    share = curve.median(shares, 1 / 3, 1.0)
    if share > 0.5:
        told = f"{evidence}; weight decay alone has {share:.2g} times the norm of the updates"
        yield Finding("decay_too_high", told, remedies.flag("optimizer.weight_decay", 1e-4))


def bad_init(curve: Curve) -> Iterator[Finding]:
    """The loss starts far above chance, or stays at chance long after warm-up and then falls."""
    if starts_high(curve):
        yield from high_start(curve, more="")
        return
    left = curve.smooth < AT_CHANCE * curve.chance
    flat = np.arange(len(curve.step)) < (np.argmax(left) if left.any() else 0)
    flat &= curve.rate > 0.5 * curve.rate.max()  # a warm-up may be flat
    if flat.sum() < 3 or curve.steps[flat].sum() < 100 or curve.loss.min() > 0.8 * curve.chance:
        return
    evidence = (
        f"train loss stays at chance, {np.median(curve.loss[flat]):.3f}, to step {curve.step[flat][-1]:.0f} at rate "
        f"{curve.rate[flat].max():.3g}, and then falls to {curve.loss.min():.3f}"
    )
    yield Finding("bad_init", evidence, remedies.better_start(curve.config))


def starts_high(curve: Curve) -> bool:
    """Whether the first window is above twice chance; good initial weights give up to 1.5 times chance there."""
    return bool(curve.loss[0] > 2 * curve.chance + SIGMAS * curve.noise[0])


def high_start(curve: Curve, *, more: str) -> Iterator[Finding]:
    """A first window far above chance: the rate if its updates replaced the weights, else the weights or the pixels."""
    path = curve.update_ratio[0] * curve.steps[0]
    evidence = f"train loss is {curve.loss[0]:.3g} in the first window, {curve.chance:.3g} at chance{more}"
    if path > 1:
        told = f"{evidence}; the updates of that window alone are {path:.2g} times the norm of the weights"
        yield Finding("lr_too_high", told, remedies.rate(curve.config, times=0.1))
        evidence = SAME
    yield from bad_start(curve.config, evidence=evidence)


def bad_start(config: Mapping[str, Any], *, evidence: str) -> Iterator[Finding]:
    """The weights or the pixels; the pixels first if the config sets their statistics or does not normalise them."""
    normalize = remedies.flag("data.normalize", "channel_mean_std --config.data.std='()'")
    scale = Finding("input_scale", evidence, normalize)
    init = Finding("bad_init", evidence, remedies.better_start(config))
    own = config["data"]["normalize"] == "none" or len(config["data"]["std"])
    first, second = (scale, init) if own else (init, scale)
    yield from (first, second._replace(evidence=SAME))


def plateau(curve: Curve) -> Iterator[Finding]:
    """The loss stands still far from its floor, at a rate that never falls."""
    if curve.rate[-1] < 0.5 * curve.rate.max() or curve.mixes:
        return
    before, end = curve.median(curve.excess, 0.4, 0.7), curve.median(curve.excess, 0.7, 1.0)
    if end < LEARNT * curve.chance or end < STANDS_STILL * before or curve.part(0.5, 1.0).sum() < 6:
        return
    loss = curve.median(curve.loss, 0.5, 1.0)
    evidence = f"train loss {loss:.3f} over the second half, at a constant rate {curve.rate[-1]:.3g}"
    yield Finding("plateau", evidence, "--config.schedule.name=cosine: let the rate fall")


def spike(curve: Curve) -> Iterator[Finding]:
    """One window far above the four before it and the three after."""
    inside = np.arange(4, len(curve.step) - 3)
    before = np.median(windows(curve.loss, 4), axis=1)[: len(inside)]
    after = np.median(windows(curve.loss, 3), axis=1)[5:]
    jump = curve.loss[inside] - np.maximum(before, after)
    tall = (jump > 4 * JUMP * curve.chance) & (jump > 0.5 * before)
    tall &= (jump > 2 * SIGMAS * curve.noise[inside]) & ~curve.restarted[inside]
    for i in np.flatnonzero(tall)[:1]:
        at = inside[i]
        evidence = (
            f"train loss {before[i]:.3g}, then {curve.loss[at]:.3g} at step {curve.step[at]:.0f}, then {after[i]:.3g}"
        )
        yield Finding("spike", evidence, f"{remedies.flag('optimizer.clip_norm', 1.0)}, or a lower rate")
