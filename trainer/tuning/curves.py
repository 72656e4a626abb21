"""The curve doctor: step 6 of the lecture's seven, what a run's curves show and what to do about it.

`diagnose(records, num_classes=..., config=...)` -> findings, the likelier cause first; a sound run gets none.

Two clocks. Steps, and the learning rate summed over them (`Curve.clock`): under a decaying schedule a loss stands still
at the end for want of a rate, and only on the second clock does standing still say something of the network.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.tuning.findings import Finding

# What is compared are medians of at least three windows of the log: fewer say nothing. The lecture gives a rate about
# a hundred iterations to show what it does.
FEWEST_RECORDS = 6
FEWEST_STEPS = 100
SIGMAS = 3.0  # of a binomial or a window's noise; a run is asked some twenty questions, and at 3 one in 700 errs
# A network at chance may know how frequent the classes are. In benchmark data these differ by about a tenth.
CHANCE_SLACK = 0.1
MAD = 1.4826  # times the median of absolute deviations is the standard deviation of normal noise
STUCK = 0.97  # of the loss at chance. A network that learns anything in an epoch passes below it
FAR_ABOVE_CHANCE = 2.0  # times the loss at chance; fitting initial weights give up to 1.5 of it in the first steps
# Of the loss at chance, above its floor: below a tenth the network has learnt its train split, and a curve that stands
# still there has nowhere to go.
LEARNT = 0.1
# The updates' lengths summed, over that of the weights. Runs of this framework that learn have 0.3 to 25, those at a
# hundredth of their rate 0.03: weights that move by less than a tenth of themselves are still the initial ones.
SHORT_PATH = 0.1
RISE = 1.25  # a loss this many times an earlier one, and JUMP above it, has risen; windows of a sound run vary by less
JUMP = 0.05  # of the loss at chance: small losses double and halve without meaning
STANDS_STILL = 0.97  # of the loss a third of the way before; a power law of exponent 0.1 falls below it
POINTS = 0.05  # accuracies nearer than five points are alike, whatever their standard errors
OVERFIT_RISE = 1.25  # of validation loss over its lowest. Confident networks drift up by 5 to 20 % without harm
FIRST_EPOCH = 1.05  # batches seldom end with the epoch; a twentieth of second visits changes no accuracy
MANY_EPOCHS = 5  # a network that gets a quarter of train right after five is not merely short of time
MOST = 0.5  # of the length of the updates; at rates and decays that train well the decay is a hundredth of it
BIG_GAP = 0.3  # of train accuracy over validation's. Networks that do well on hard data, such as CIFAR-100, have 0.25
WELL = 0.75  # of validation right: what holds train back is not the size of the network
EARLY = 0.2  # of the exponent before the drop: what the loss keeps of it, or less

SAME = "the curve alone cannot tell it from the one before"


class Curve(NamedTuple):
    """The records of a run as arrays [R], in order of step, and what its config says of them."""

    step: np.ndarray
    steps: np.ndarray  # in the window that ends at `step`
    epoch: np.ndarray
    examples: np.ndarray  # visits in the window
    loss: np.ndarray
    excess: np.ndarray  # loss above the floor that label smoothing puts under it
    accuracy: np.ndarray
    rate: np.ndarray
    clock: np.ndarray  # the rate summed over steps, 0..1 of the run
    grad_norm: np.ndarray
    update_ratio: np.ndarray
    val_index: np.ndarray  # [V] the records that hold an evaluation
    val_loss: np.ndarray  # [V]
    val_accuracy: np.ndarray  # [V]
    val_examples: np.ndarray  # [V]
    classes: int
    config: Mapping[str, Any]

    @property
    def chance_loss(self) -> float:
        return chance_loss(self.config["loss"]["name"], num_classes=self.classes)

    @property
    def path(self) -> float:
        """The lengths of all updates over that of the weights: an upper bound on how far these have moved."""
        return float(self.update_ratio @ self.steps)

    def part(self, start: float, end: float) -> np.ndarray:
        """bool [R]: the records with clock in (start, end]; where these are fewer than three, the three nearest."""
        inside = (self.clock > start) & (self.clock <= end)
        if inside.sum() < 3:
            inside[np.argsort(np.abs(self.clock - (start + end) / 2), kind="stable")[:3]] = True
        return inside

    def knows(self, inside: np.ndarray) -> bool:
        """Whether train accuracy over the records `inside` is above chance, beyond doubt."""
        accuracy, examples = pooled(self.accuracy, self.examples, inside)
        return above_chance(accuracy, examples, classes=self.classes)


def chance_loss(name: str, *, num_classes: int) -> float:
    """What `losses.LOSSES[name]` gives where all logits are zero; with class weights, where their mean is 1."""
    return {
        "sigmoid": num_classes * math.log(2),
        "softmax": math.log(num_classes),
        "svm": num_classes - 1.0,
        "weighted_softmax": math.log(num_classes),
    }[name]


def loss_floor(name: str, *, num_classes: int, label_smoothing: float) -> float:
    """The lowest loss of smoothed labels, which is the entropy of the targets; 0 without smoothing."""
    other = label_smoothing / num_classes
    own = 1 - label_smoothing + other
    if name == "svm" or not label_smoothing:
        return 0.0
    entropy = -own * math.log(own) - (num_classes - 1) * other * math.log(other)
    if name == "sigmoid":
        entropy -= (1 - own) * math.log(1 - own) if own < 1 else 0.0
        entropy -= (num_classes - 1) * (1 - other) * math.log(1 - other)
    return entropy


def double_softmax_floor(*, num_classes: int, label_smoothing: float) -> float:
    """The lowest cross-entropy where the logits are probabilities: log(e + C - 1) - (1 - s + s / C).

    It is that of a probability of 1 on the label; log(1 + (C - 1) / e) without smoothing, 1.461 for ten classes. An
    image given wholly to another class has 1 - s more.
    """
    own = 1 - label_smoothing + label_smoothing / num_classes
    return math.log(math.e + num_classes - 1) - own


def standard_error(accuracy: float, examples: float) -> float:
    """Of an accuracy over `examples` draws: sqrt(p (1 - p) / n), with p kept off 0 and 1 (Agresti and Coull 1998)."""
    p = (accuracy * examples + 2) / (examples + 4)
    return math.sqrt(p * (1 - p) / (examples + 4))


def pooled(accuracy: np.ndarray, examples: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Accuracy over all examples of the windows `inside`, and their number."""
    total = float(examples[inside].sum())
    return float(accuracy[inside] @ examples[inside]) / max(1.0, total), total


def above_chance(accuracy: float, examples: float, *, classes: int) -> bool:
    """Whether guessing, with the frequencies of the classes known, is unlikely to be so often right."""
    chance = (1 + CHANCE_SLACK) / classes
    return accuracy > chance + SIGMAS * standard_error(chance, examples)


def read(records: Sequence[Mapping[str, Any]], *, num_classes: int, config: Mapping[str, Any]) -> Curve | None:
    """The records as a `Curve`, without those that hold no finite loss; None where none is left.

    Where each step takes all of train, and the config does not say how many, an accuracy counts as that of one image a
    step: too few for any claim about it.
    """
    keys = ("step", "epoch", "train_loss", "train_accuracy", "lr", "grad_norm")
    records = list({record["step"]: record for record in records if _finite(record, keys)}.values())
    if not records:
        return None
    step, epoch, loss, accuracy, rate, grad_norm = (
        np.array([record[key] for record in records], float) for key in keys
    )
    # Weights that are all zero at first have no length to compare with: NaN or infinite, and no fault.
    update_ratio = np.nan_to_num([record["update_ratio"] for record in records], nan=0.0, posinf=1e9)
    steps = np.diff(step, prepend=0.0)
    clock = np.cumsum(np.maximum(rate, 0.0) * steps)
    val_index = np.array([i for i, record in enumerate(records) if _finite(record, ("val_loss", "val_accuracy"))], int)
    val = [records[i] for i in val_index]
    floor = loss_floor(config["loss"]["name"], num_classes=num_classes, label_smoothing=config["label_smoothing"])
    batch_size = config["data"]["batch_size"] or config["data"]["train_examples"]  # 0: all of train in each step
    return Curve(
        step=step,
        steps=steps,
        epoch=epoch,
        examples=steps * max(1, batch_size),
        loss=loss,
        excess=loss - floor,
        accuracy=accuracy,
        rate=rate,
        clock=clock / clock[-1] if clock[-1] > 0 else step / step[-1],
        grad_norm=grad_norm,
        update_ratio=update_ratio,
        val_index=val_index,
        val_loss=np.array([record["val_loss"] for record in val], float),
        val_accuracy=np.array([record["val_accuracy"] for record in val], float),
        val_examples=np.array([record["val_examples"] for record in val], float),
        classes=num_classes,
        config=config,
    )


def _finite(record, keys):
    return all(isinstance(record.get(key), (int, float)) and math.isfinite(record[key]) for key in keys)


def diagnose(
    records: Sequence[Mapping[str, Any]], *, num_classes: int, config: Mapping[str, Any], stopped: str = ""
) -> list[Finding]:
    """What the curve of a run shows to be wrong, the likelier cause first; [] for a sound run or one too short to tell.

    A cause that the curve cannot tell from the one before it says so (`SAME`): one of the two is enough.
    records: those of its `metrics.jsonl`, see `writers.read_records`. config: that of the run. stopped: the message of
    the NonFiniteError that ended it, if one did. Chance means classes about equally frequent: where one is far more
    so, a network that only guesses it is taken for one that learns, and gets no finding.
    """
    keys = ("train_loss", "grad_norm", "val_loss")
    whole = all(math.isfinite(record[key]) for record in records for key in keys if key in record)
    curve = read(records, num_classes=num_classes, config=config)
    if stopped or not whole:
        return list(_non_finite(curve, config=config, stopped=stopped))
    if curve is None or len(curve.step) < FEWEST_RECORDS or curve.step[-1] < FEWEST_STEPS:
        return []
    if _is_stuck(curve):
        return list(_stuck(curve))
    findings, explained = [], set()
    for sign, explains in SIGNS.items():
        said = [] if sign.__name__ in explained else list(sign(curve))
        findings += said
        explained |= {other.__name__ for other in explains} if said else set()
    return findings


# Before the signs: runs that ended in NaN, and runs that never left chance.


def _non_finite(curve: Curve | None, *, config, stopped) -> Iterator[Finding]:
    lower = _rate(config, 0.1)
    if curve is None:
        evidence = stopped or "no record holds a finite loss"
        yield Finding("non_finite", f"it came before the first record ({evidence})", f"{lower}, in a new --workdir")
        yield Finding("lr_too_high", "the usual cause", lower)
        yield from _bad_start(config, evidence=SAME)
        return
    last = (
        f"the last finite loss is {curve.loss[-1]:.3g} at step {curve.step[-1]:.0f}, the lowest {curve.loss.min():.3g}"
    )
    grown = curve.grad_norm[-1] / max(np.median(curve.grad_norm), 1e-30)
    yield Finding("non_finite", f"{last}; gradient norm {grown:.1f} times its median", f"{lower}, in a new --workdir")
    yield Finding("lr_too_high", f"the usual cause; the rate was {curve.rate[-1]:.3g}", lower)
    if _starts_high(curve):
        yield from _bad_start(config, evidence=SAME)


def _is_stuck(curve) -> bool:
    """Whether the second half of the run is at chance: its loss, its accuracy, and that on validation."""
    half = curve.part(0.5, 1.0)
    late = curve.val_index >= np.flatnonzero(half)[0]
    val = pooled(curve.val_accuracy, curve.val_examples, late) if late.any() else (0.0, 1.0)
    return (
        np.median(curve.loss[half]) >= STUCK * curve.chance_loss
        and not curve.knows(half)
        and not above_chance(*val, classes=curve.classes)
    )


def _stuck(curve) -> Iterator[Finding]:
    """The causes of a loss that stays at chance, the first that the numbers speak for before the others."""
    half = curve.part(0.5, 1.0)
    loss, ratio = np.median(curve.loss[half]), np.median(curve.update_ratio[half])
    where = f"train loss {loss:.3f} over the second half, {curve.chance_loss:.3f} at chance"
    lower = _rate(curve.config, 0.1)
    higher = _rate(curve.config, 10)
    gradient, bias_alone = np.median(curve.grad_norm[half]), _bias_gradient(curve)
    fell_back = _running_median(curve.loss).min() < 0.9 * curve.chance_loss
    silent = gradient < 1.25 * bias_alone
    silence = f"gradient norm {gradient:.3g}, that of the last bias alone is {bias_alone:.3g}"
    if _starts_high(curve):
        yield from _high_start(curve, f"; {where}")
    elif curve.path < SHORT_PATH and not silent:
        yield Finding("lr_too_low", f"{where}; {_path(curve)}", higher)
        yield Finding("bad_init", SAME, _better_start(curve.config))
    elif fell_back or loss > 1.1 * curve.chance_loss:
        yield Finding("lr_too_high", f"{where}; lowest {curve.loss.min():.3f} before", lower)
    elif _decay_share(curve) > MOST:
        yield from _decay_outweighs(curve, where)
    elif not silent:
        learnt = f"{where}, though gradient norm {gradient:.3g} and updates {ratio:.1g} of the weights are not small"
        yield Finding("shuffled_labels", learnt, "look at images with their labels")
        yield Finding("bad_init", SAME, _better_start(curve.config))
        yield Finding("lr_too_high", SAME, lower)
    if silent:
        dead = Finding("dead_units", f"{silence}: nothing reaches the layers below; {where}", f"{lower}, or leaky_relu")
        falls = gradient < 0.5 * curve.grad_norm[0]
        if falls:
            yield dead
        if not _starts_high(curve):
            yield Finding("bad_init", silence if falls else f"{silence}; {where}", _better_start(curve.config))
        if not falls:
            yield dead._replace(evidence=SAME)


# The signs: each looks for one cause in a run that left chance.


def _double_softmax(curve) -> Iterator[Finding]:
    if "softmax" not in curve.config["loss"]["name"] or curve.config["data"]["mix"]["name"] != "none":
        return
    smoothing, end = curve.config["label_smoothing"], curve.part(2 / 3, 1.0)
    floor = double_softmax_floor(num_classes=curve.classes, label_smoothing=smoothing)
    accuracy, examples = pooled(curve.accuracy, curve.examples, end)
    loss, before = np.median(curve.loss[end]), np.median(curve.loss[curve.part(1 / 3, 2 / 3)])
    expected = floor + (1 - smoothing) * (1 - accuracy)
    far = abs(loss - expected) > POINTS + SIGMAS * standard_error(accuracy, examples)
    least = np.min(_running_median(curve.loss) + SIGMAS * _noise(curve))
    if least < floor or accuracy < 0.5 or far or loss < STANDS_STILL * before:
        return
    evidence = (
        f"train loss {loss:.3f} at {accuracy:.1%} train accuracy; no window is below {floor:.3f}, the least that a "
        f"softmax of a softmax gives with {curve.classes} classes"
    )
    yield Finding("double_softmax", evidence, "end the network with its logits: the loss applies the softmax")


def _shuffled_labels(curve) -> Iterator[Finding]:
    first, end = curve.epoch <= FIRST_EPOCH, curve.part(2 / 3, 1.0)
    late = curve.val_index >= np.flatnonzero(end)[0]
    if curve.epoch[-1] < 3 or not late.any() or not curve.knows(end) or curve.knows(first):
        return
    val = pooled(curve.val_accuracy, curve.val_examples, np.ones(len(curve.val_index), bool))
    if above_chance(*val, classes=curve.classes):
        return
    (seen, visits), (unseen, _) = (pooled(curve.accuracy, curve.examples, part) for part in (end, first))
    told = f"{unseen:.1%} in the first epoch, when each image is new, and " if first.any() else ""
    if curve.path < SHORT_PATH or seen < val[0] + POINTS + SIGMAS * standard_error(seen, visits):
        return
    evidence = (
        f"train accuracy {told}{seen:.1%} in the end, by heart; validation {val[0]:.1%} all along, its loss from "
        f"{curve.val_loss[0]:.2f} to {curve.val_loss[-1]:.2f}"
    )
    shuffled = Finding("shuffled_labels", evidence, "look at images with their labels: do both come in one order?")
    if first.any():
        yield shuffled
        return
    same = f"{SAME} without a window of the log within the first epoch"
    other = Finding("val_distribution", same, _flag("log_every_steps", max(1, int(curve.step[0] / curve.epoch[0] / 2))))
    second = curve.epoch <= 2
    if second.any() and pooled(curve.accuracy, curve.examples, second)[0] > 0.5:  # soon for learning by heart
        shuffled, other = other._replace(evidence=evidence), shuffled._replace(evidence=same)
    yield from (shuffled, other)


def _val_distribution(curve) -> Iterator[Finding]:
    """What the network got right of images it had not seen, it should get right of validation's too."""
    begins = curve.epoch - curve.epoch * curve.steps / curve.step
    first = curve.epoch <= FIRST_EPOCH
    new = first & (begins >= 0.5) if (first & (begins >= 0.5)).any() else first
    judged = curve.val_index >= (np.flatnonzero(new)[-1] if new.any() else len(curve.step))
    if judged.sum() < 2:
        return
    accuracy, examples = pooled(curve.accuracy, curve.examples, new)
    best = curve.val_accuracy[judged].max()
    doubt = math.hypot(standard_error(accuracy, examples), standard_error(best, curve.val_examples[0]))
    gap = np.median(curve.accuracy[-3:]) - np.median(curve.val_accuracy[-3:])
    if accuracy - best < (0 if gap > BIG_GAP else POINTS) + SIGMAS * doubt:
        return
    evidence = (
        f"{accuracy:.1%} of the train images right in the first epoch, before it had seen them, and never more than "
        f"{best:.1%} on validation: overfitting cannot do that"
    )
    yield Finding("val_distribution", evidence, "look at images of both splits, and at how validation was made")
    if not above_chance(best, curve.val_examples[0], classes=curve.classes):
        same = "validation is at chance: its labels alone may be shuffled"
        yield Finding("shuffled_labels", same, "look at validation images with their labels")


def _lr_too_high(curve) -> Iterator[Finding]:
    """The loss rises while the rate is up, or stays near chance until it has come down."""
    lower = _rate(curve.config, 1 / 3)
    floor = curve.loss[0] - curve.excess[0]
    chance = curve.chance_loss - floor
    # From the lowest of three windows before to the five ahead: a spike is shorter.
    lowest = np.minimum.accumulate(np.median(_windows(curve.excess, 3), axis=1))
    ahead = np.median(_windows(curve.excess, 5), axis=1)[3:]
    lowest = lowest[: len(ahead)]
    risen = ahead > lowest + np.minimum((RISE - 1) * lowest, JUMP * chance) + JUMP * chance
    # Medians of 3 and of 5 differ by 0.86 of a window's noise; the lowest of R is lower by another sqrt(2 log R).
    sigmas = 0.86 * (SIGMAS + math.sqrt(2 * math.log(len(curve.loss))))
    risen &= ahead > lowest + sigmas * _noise(curve)[3 : 3 + len(ahead)]
    risen &= ~_windows(_restarted(curve.rate), 5).any(axis=1)[3:]
    if risen.any():
        i = int(np.argmax(risen))
        evidence = (
            f"train loss rose from {lowest[i] + floor:.3g} to {ahead[i] + floor:.3g}, the median of steps "
            f"{curve.step[i + 3]:.0f} to {curve.step[i + 7]:.0f}, at rate {curve.rate[i + 3]:.3g}"
        )
        yield Finding("lr_too_high", evidence, lower)
        return
    early, late = curve.part(0.1, 0.6), curve.part(0.9, 1.0)
    high, low = np.median(curve.excess[early]), np.median(curve.excess[late])
    decays = np.median(curve.rate[late]) < 0.5 * np.median(curve.rate[early])
    if decays and high > 0.85 * chance and low < 0.85 * high and curve.path > 1:
        evidence = (
            f"train loss stays at {high + floor:.3f} while the rate is high ({curve.chance_loss:.3f} at chance), with "
            f"updates of {np.median(curve.update_ratio[early]):.1g} of the weights, and falls to {low + floor:.3f} "
            "once the rate has"
        )
        yield Finding("lr_too_high", evidence, lower)
        yield Finding("bad_init", SAME, _better_start(curve.config))


def _lr_too_low(curve) -> Iterator[Finding]:
    before, end = (np.median(curve.excess[curve.part(*span)]) for span in ((1 / 3, 2 / 3), (2 / 3, 1.0)))
    if curve.path < SHORT_PATH and end > LEARNT * curve.chance_loss and end < before:
        evidence = f"train loss is still falling, {curve.loss[-1]:.3f} in the end; {_path(curve)}"
        yield Finding("lr_too_low", evidence, _rate(curve.config, 10))
        if np.median(curve.loss[curve.part(0.0, 1 / 3)]) > STUCK * curve.chance_loss:
            yield Finding("bad_init", SAME, _better_start(curve.config))


def _decayed_too_early(curve) -> Iterator[Finding]:
    """A power of the step is what a loss follows at a constant rate: the exponent before the first drop, and after."""
    drops = np.flatnonzero(curve.rate < 0.4 * np.maximum.accumulate(curve.rate))
    drop = drops[0] if len(drops) else 0
    before, after = np.arange(drop // 3, drop + 1), np.arange(drop + 1, len(curve.step))
    stepwise = curve.config["schedule"]["name"] in ("step", "plateau")
    if not stepwise or len(before) < 2 or len(after) < 4 or curve.step[-1] < 2 * curve.step[drop]:
        return
    log_step, log_loss = np.log(curve.step), np.log(np.maximum(curve.excess, 1e-9))
    was, now = (-np.polyfit(log_step[part], log_loss[part], 1)[0] for part in (before, after))
    fell = was * (log_step[drop] - log_step[before[0]])
    if fell > EARLY and now < EARLY * was and np.median(curve.excess[-3:]) > LEARNT / 2 * curve.chance_loss:
        evidence = (
            f"train loss fell as step^-{was:.2g} until the rate did, around step {curve.step[drop]:.0f} of "
            f"{curve.step[-1]:.0f}, and as step^{-now:.2g} after it; it stands at {curve.loss[-1]:.3f}"
        )
        yield Finding("decayed_too_early", evidence, "a later schedule.at_percent, or --config.schedule.name=cosine")


def _bad_init(curve) -> Iterator[Finding]:
    if _starts_high(curve):
        yield from _high_start(curve)
        return
    leaves = np.flatnonzero(_running_median(curve.loss) < STUCK * curve.chance_loss)
    flat = np.arange(len(curve.step)) < (leaves[0] if len(leaves) else 0)
    flat &= curve.rate > 0.5 * curve.rate.max()  # a warm-up may be flat
    if flat.sum() < 3 or curve.steps[flat].sum() < FEWEST_STEPS or curve.loss.min() > 0.8 * curve.chance_loss:
        return
    evidence = (
        f"train loss stays at chance, {np.median(curve.loss[flat]):.3f}, to step {curve.step[flat][-1]:.0f} at rate "
        f"{curve.rate[flat].max():.3g}, and then falls to {curve.loss.min():.3f}"
    )
    yield Finding("bad_init", evidence, _better_start(curve.config))


def _plateau(curve) -> Iterator[Finding]:
    """Flat at a rate that never falls."""
    half = curve.part(0.5, 1.0)
    if curve.rate[-1] < 0.5 * curve.rate.max() or curve.config["data"]["mix"]["name"] != "none":
        return
    before, end = (np.median(curve.excess[curve.part(*span)]) for span in ((0.4, 0.7), (0.7, 1.0)))
    if end < LEARNT * curve.chance_loss or end < STANDS_STILL * before or half.sum() < 6:
        return
    evidence = (
        f"train loss {np.median(curve.loss[half]):.3f} over the second half, at a constant rate {curve.rate[-1]:.3g}"
    )
    yield Finding("plateau", evidence, "--config.schedule.name=cosine: let the rate fall")


def _decay_too_high(curve) -> Iterator[Finding]:
    """Decoupled decay is most of the update, and train loss stands still far from its floor."""
    before, end = (np.median(curve.excess[curve.part(*span)]) for span in ((1 / 3, 2 / 3), (2 / 3, 1.0)))
    if end > max(LEARNT * curve.chance_loss, 0.9 * before):
        yield from _decay_outweighs(curve, f"train loss stands at {curve.loss[-1]:.3f}")


def _underfit(curve) -> Iterator[Finding]:
    """No gap, and most of train wrong: no better for the last third of the rate, or after many epochs hardly begun."""
    before, end = curve.part(1 / 3, 2 / 3), curve.part(2 / 3, 1.0)
    accuracy, examples = pooled(curve.accuracy, curve.examples, end)
    way = (accuracy * curve.classes - 1) / (curve.classes - 1)  # 0 at chance, 1 where all is right
    still = np.median(curve.excess[end]) > STANDS_STILL * np.median(curve.excess[before])
    hardly_begun = way < 0.25 and curve.epoch[-1] >= MANY_EPOCHS
    if not len(curve.val_index) or way > 0.5 or not (still or hardly_begun):
        return
    val = np.median(curve.val_accuracy[-3:])
    doubt = math.hypot(standard_error(accuracy, examples), standard_error(val, curve.val_examples[0]))
    if accuracy > val + POINTS + SIGMAS * doubt or val > WELL:  # dropout and augmentation are for train alone
        return
    evidence = (
        f"{accuracy:.1%} on train and {val:.1%} on validation after {curve.epoch[-1]:.3g} epochs; train loss "
        f"{curve.loss[-1]:.3f}"
    )
    underfit = Finding("underfit", evidence, f"a larger network (config.model), or {_longer(curve.config)}")
    augmented = Finding("augmentation", evidence, _flag("data.augment", "''"))
    if not curve.config["data"]["augment"]:
        yield underfit
    elif val > accuracy + POINTS:  # train, which is augmented, is the harder one
        yield from (augmented, underfit._replace(evidence=SAME))
    else:
        yield from (underfit, augmented._replace(evidence=SAME))


def _overfit(curve) -> Iterator[Finding]:
    """Validation loss clearly up from its lowest while train loss fell, and accuracy no better for it."""
    if len(curve.val_index) < 4:
        return
    lowest = int(np.argmin(curve.val_loss))
    since = curve.val_loss[lowest + 1 :][-3:]
    end, then = np.median(since) if len(since) else np.inf, curve.val_index[lowest]
    noise = curve.val_loss[lowest] * math.sqrt(2 / curve.val_examples[0])  # images' losses spread as wide as their mean
    rose = end > OVERFIT_RISE * curve.val_loss[lowest] + SIGMAS * noise and len(since) > 1
    fell = np.median(curve.excess[-3:]) < 0.8 * curve.excess[then]
    best, last = curve.val_accuracy.max(), np.median(curve.val_accuracy[-3:])
    doubt = SIGMAS * standard_error(best, curve.val_examples[0]) * math.sqrt(2)
    worse = best - last > doubt + POINTS
    gap = np.median(curve.accuracy[-3:]) - last > BIG_GAP + doubt
    if fell and (rose or worse or gap):
        evidence = (
            f"validation loss {curve.val_loss[lowest]:.3f} at step {curve.step[then]:.0f} and {curve.val_loss[-1]:.3f} "
            f"in the end, while train loss fell from {curve.loss[then]:.3f} to {curve.loss[-1]:.3f}; accuracy "
            f"{curve.accuracy[-1]:.1%} on train, {last:.1%} on validation"
        )
        yield Finding(
            "overfit", evidence, "more augmentation (config.data.augment), decay or dropout; or early stopping"
        )


def _spike(curve) -> Iterator[Finding]:
    inside = np.arange(4, len(curve.step) - 3)
    if not len(inside):
        return
    before = np.median(_windows(curve.loss, 4), axis=1)[: len(inside)]
    after = np.median(_windows(curve.loss, 3), axis=1)[5:]
    jump = curve.loss[inside] - np.maximum(before, after)
    tall = (jump > 4 * JUMP * curve.chance_loss) & (jump > 0.5 * before)
    tall &= (jump > 2 * SIGMAS * _noise(curve)[inside]) & ~_restarted(curve.rate)[inside]
    for i in np.flatnonzero(tall)[:1]:
        at = inside[i]
        evidence = (
            f"train loss {before[i]:.3g}, then {curve.loss[at]:.3g} at step {curve.step[at]:.0f}, then {after[i]:.3g}"
        )
        yield Finding("spike", evidence, f"{_flag('optimizer.clip_norm', 1.0)}, or a lower rate")


# A sign -> the signs that its cause explains, and that are then not asked.
SIGNS = {
    _double_softmax: (_plateau, _underfit, _lr_too_low, _overfit),
    _shuffled_labels: (_val_distribution, _overfit, _bad_init, _plateau, _underfit),
    _val_distribution: (_overfit,),
    _lr_too_high: (_bad_init, _plateau, _underfit, _spike),
    _decayed_too_early: (_lr_too_low, _plateau, _underfit),
    _lr_too_low: (_bad_init, _plateau, _underfit),
    _decay_too_high: (_plateau, _underfit),
    _bad_init: (_spike,),
    _plateau: (),
    _underfit: (),
    _overfit: (),
    _spike: (),
}


# What the evidence and the remedies are made of.


def _windows(values, length) -> np.ndarray:
    """[R - length + 1, length]: each run of `length` values; [0, length] of fewer values."""
    if len(values) < length:
        return np.empty((0, length))
    return np.lib.stride_tricks.sliding_window_view(values, length)


def _running_median(values) -> np.ndarray:
    """[R]: the median of each value and its two neighbours."""
    return np.median(_windows(np.pad(values, 1, mode="edge"), 3), axis=1)


def _noise(curve) -> np.ndarray:
    """[R] standard deviation of each window's loss, from how the ten before and after it differ from one another."""
    scale = np.sqrt(1 / curve.steps[1:] + 1 / curve.steps[:-1])
    jumps = np.pad(np.abs(np.diff(curve.loss)) / scale, 10, mode="symmetric")
    return MAD * np.median(_windows(jumps, 20), axis=1) / np.sqrt(curve.steps)


def _restarted(rate) -> np.ndarray:
    """bool [R]: whether the rate, once it had halved, went up again: warm restarts raise the loss, and mean to."""
    halved = np.minimum.accumulate(rate / np.maximum.accumulate(np.maximum(rate, 1e-30))) < 0.5
    lowest = np.minimum.accumulate(np.where(halved, rate, np.inf))
    return halved & (rate > 1.5 * lowest)


def _bias_gradient(curve) -> float:
    """Expected norm of the gradient of the last layer's bias at chance: draws of a batch, of mean 0.

    At probabilities of 1/C an image's gradient is p - y, of length^2 1 - 1/C; at equal scores the SVM's is C (C - 1).
    """
    square = 1 - 1 / curve.classes
    if curve.config["loss"]["name"] == "svm":
        square = curve.classes * (curve.classes - 1)
    model = curve.config["model"]
    if model.get("activation") == "sigmoid" and model.get("normalization") == "none":
        square *= 1 + model["widths"][-1] / 4  # sigmoids of nothing are 1/2, and so inputs as constant as the bias's
    return math.sqrt(square / (curve.examples / curve.steps)[0])


def _decay_share(curve) -> float:
    """Of the update, the part that is decoupled weight decay; 0 for optimisers that put it into the gradient."""
    optimizer = curve.config["optimizer"]
    if optimizer["name"] not in ("adamw", "lion", "muon", "schedule_free"):
        return 0.0
    shares = curve.rate * optimizer["weight_decay"] / np.maximum(curve.update_ratio, 1e-30)
    return float(np.median(shares[curve.part(1 / 3, 1.0)]))


def _decay_outweighs(curve, where) -> Iterator[Finding]:
    if (share := _decay_share(curve)) > MOST:
        evidence = f"{where}; weight decay alone would make an update {share:.2g} times as long as the updates made"
        yield Finding("decay_too_high", evidence, _flag("optimizer.weight_decay", 1e-4))


def _starts_high(curve) -> bool:
    return curve.loss[0] > FAR_ABOVE_CHANCE * curve.chance_loss + (
        SIGMAS * _noise(curve)[0] if len(curve.step) > 1 else 0
    )


def _high_start(curve, more="") -> Iterator[Finding]:
    """A first window far above chance: the rate where its updates have replaced the weights, else weights or pixels."""
    path = curve.update_ratio[0] * curve.steps[0]
    evidence = f"train loss is {curve.loss[0]:.3g} in the first window, {curve.chance_loss:.3g} at chance{more}"
    if path > 1:
        told = f"{evidence}; the updates of that window alone are {path:.2g} times the length of the weights"
        yield Finding("lr_too_high", told, _rate(curve.config, 0.1))
        evidence = SAME
    yield from _bad_start(curve.config, evidence=evidence)


def _bad_start(config, *, evidence) -> Iterator[Finding]:
    """A first loss far above chance: the weights or the pixels; which first, the config says."""
    scale = Finding("input_scale", evidence, _flag("data.normalize", "channel_mean_std --config.data.std='()'"))
    init = Finding("bad_init", evidence, _better_start(config))
    own = config["data"]["normalize"] == "none" or len(config["data"]["std"])
    first, second = (scale, init) if own else (init, scale)
    yield first
    yield second._replace(evidence=SAME)


def _better_start(config) -> str:
    model = config["model"]
    flags = [_flag("model.init", "auto")] if model.get("init", "auto") != "auto" else []
    flags += [_flag("model.normalization", "batch")] if model.get("normalization") == "none" else []
    return " ".join(flags) or "the initial scale of the weights, and a warm-up"


def _path(curve) -> str:
    return f"all updates together are {curve.path:.2g} of the length of the weights"


def _longer(config) -> str:
    ((unit, value),) = config["horizon"].items()
    return _flag(f"horizon.{unit}", 2 * value)


def _rate(config, times) -> str:
    return _flag("optimizer.lr", config["optimizer"]["lr"] * times)


def _flag(key, value) -> str:
    return f"--config.{key}={f'{value:.3g}' if isinstance(value, float) else value}"
