"""Signs in train and validation together: the labels, the split, underfitting and overfitting.

Each function looks for one cause in a run that left chance, and yields nothing if it does not find it.
"""

import math
from collections.abc import Iterator

import numpy as np

from linseed.trainer.tuning.diagnosis import remedies
from linseed.trainer.tuning.diagnosis.curve import POINTS, SIGMAS, STANDS_STILL, Accuracy, Curve
from linseed.trainer.tuning.diagnosis.findings import Finding
from linseed.trainer.tuning.diagnosis.signs_in_train import SAME

FIRST_EPOCH = 1.05  # windows seldom end with the epoch; a twentieth of repeated images changes no accuracy
BIG_GAP = 0.3  # train accuracy minus validation accuracy. Good networks on hard data, such as CIFAR-100, have 0.25


def shuffled_labels(curve: Curve) -> Iterator[Finding]:
    """Train is at chance while its images are new, and is then memorised; validation stays at chance."""
    first, end = curve.epoch <= FIRST_EPOCH, curve.part(2 / 3, 1.0)
    seen, unseen, val = curve.train(end), curve.train(first), curve.val(curve.val_index >= 0)
    late = len(curve.val_index) and curve.val_index[-1] >= np.flatnonzero(end)[0]
    known = [accuracy.beats_chance(classes=curve.classes) for accuracy in (seen, unseen, val)]
    by_heart = not curve.hardly_moved and seen.right >= val.right + POINTS + SIGMAS * seen.error
    if curve.epoch[-1] < 3 or not late or known != [True, False, False] or not by_heart:
        return
    told = f"{unseen.right:.1%} in the first epoch, when each image is new, and " if first.any() else ""
    evidence = (
        f"train accuracy {told}{seen.right:.1%} at the end, memorised; validation {val.right:.1%} throughout, its "
        f"loss from {curve.val_loss[0]:.2f} to {curve.val_loss[-1]:.2f}"
    )
    shuffled = Finding("shuffled_labels", evidence, "look at images with their labels: are both in the same order?")
    if first.any():
        yield shuffled
        return
    same = f"{SAME}: no log window is within the first epoch"
    half_epoch = max(1, int(curve.step[0] / curve.epoch[0] / 2))
    other = Finding("val_distribution", same, remedies.flag("log_every_steps", half_epoch))
    if curve.train(curve.epoch <= 2).right > 0.5:  # too early for memorising
        yield from (other._replace(evidence=evidence), shuffled._replace(evidence=same))
    else:
        yield from (shuffled, other)


def val_distribution(curve: Curve) -> Iterator[Finding]:
    """Accuracy on train images that the network had not seen is above any accuracy on validation."""
    begins = curve.epoch - curve.epoch * curve.steps / curve.step
    new = curve.epoch <= FIRST_EPOCH
    if (new & (begins >= 0.5)).any():  # by then the network has learned most of the epoch
        new &= begins >= 0.5
    judged = curve.val_index >= (np.flatnonzero(new)[-1] if new.any() else len(curve.step))
    if judged.sum() < 2:
        return
    unseen, best = curve.train(new), Accuracy(curve.val_accuracy[judged].max(), curve.val_examples[0])
    gap = np.median(curve.accuracy[-3:]) - np.median(curve.val_accuracy[-3:])
    doubt = SIGMAS * math.hypot(unseen.error, best.error)
    if unseen.right - best.right < (0 if gap > BIG_GAP else POINTS) + doubt:
        return
    evidence = (
        f"accuracy {unseen.right:.1%} on train images in the first epoch, before the network saw them, and at most "
        f"{best.right:.1%} on validation: overfitting cannot do that"
    )
    yield Finding("val_distribution", evidence, "compare images of both splits, and check how validation was made")
    if not best.beats_chance(classes=curve.classes):
        same = "validation is at chance: perhaps only its labels are shuffled"
        yield Finding("shuffled_labels", same, "look at validation images with their labels")


def underfit(curve: Curve) -> Iterator[Finding]:
    """No gap, and most of train wrong: the loss stands still, or accuracy is near chance after five epochs."""
    if not len(curve.val_index):
        return
    train, windows = curve.clean_train, curve.train(curve.part(2 / 3, 1.0))
    if train is None:
        return
    way = (train.right * curve.classes - 1) / (curve.classes - 1)  # 0 at chance, 1 if all is right
    _, before, end = curve.thirds(curve.excess)
    hardly_begun = way < 0.25 and curve.epoch[-1] >= 5
    if way > 0.5 or not (end > STANDS_STILL * before or hardly_begun):
        return
    # Only train has dropout and augmentation: if validation does well, the network is large enough.
    val = Accuracy(np.median(curve.val_accuracy[-3:]), curve.val_examples[0])
    if train.right > val.right + POINTS + SIGMAS * math.hypot(train.error, val.error) or val.right > 0.75:
        return
    evidence = (
        f"accuracy {train.right:.1%} on train and {val.right:.1%} on validation after {curve.epoch[-1]:.3g} epochs; "
        f"train loss {curve.loss[-1]:.3f}"
    )
    small = Finding("underfit", evidence, f"a larger network (config.model), or {remedies.longer(curve.config)}")
    augmented = Finding("augmentation", evidence, remedies.flag("data.augment", "''"))
    if not curve.config["data"]["augment"]:
        yield small
    elif max(val.right, train.right) > windows.right + POINTS:  # augmentation makes train the harder split
        yield from (augmented, small._replace(evidence=SAME))
    else:
        yield from (small, augmented._replace(evidence=SAME))


def overfit(curve: Curve) -> Iterator[Finding]:
    """Train loss falls while validation gets worse, in loss or accuracy, or the gap is big."""
    if len(curve.val_index) < 4:
        return
    lowest = int(np.argmin(curve.val_loss))
    loss, then, since = curve.val_loss[lowest], curve.val_index[lowest], curve.val_loss[lowest + 1 :][-3:]
    # By a quarter: confident networks drift up by 5 to 20 % without harm. The losses of images spread as wide as their
    # mean, or, if few images are wrong, as these few: one more costs about the loss at chance.
    few = Accuracy(curve.val_accuracy[lowest], curve.val_examples[0]).error * curve.chance
    noise = math.sqrt(2) * max(loss / math.sqrt(curve.val_examples[0]), few)
    rose = len(since) > 1 and np.median(since) > 1.25 * loss + SIGMAS * noise
    best, last = curve.val_accuracy.max(), np.median(curve.val_accuracy[-3:])
    doubt = SIGMAS * Accuracy(best, curve.val_examples[0]).error * math.sqrt(2)
    worse = best - last > doubt + POINTS
    gap = np.median(curve.accuracy[-3:]) - last > BIG_GAP + doubt
    fell = np.median(curve.excess[-3:]) < 0.8 * curve.excess[then]
    if fell and (rose or worse or gap):
        evidence = (
            f"validation loss {loss:.3f} at step {curve.step[then]:.0f} and {curve.val_loss[-1]:.3f} at the end, while "
            f"train loss fell from {curve.loss[then]:.3f} to {curve.loss[-1]:.3f}; accuracy {curve.accuracy[-1]:.1%} "
            f"on train, {last:.1%} on validation"
        )
        remedy = "more augmentation (config.data.augment), decay or dropout; or early stopping"
        yield Finding("overfit", evidence, remedy)
